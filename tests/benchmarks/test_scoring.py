"""The scorers: which answers count as equal, and the values of the text metrics."""

import pytest

from benchmarks import BENCHMARKS, Task
from benchmarks.arpo import arpo_reward
from benchmarks.equality import math_equal
from benchmarks.metrics import calibration_error, pass_at_k
from benchmarks.scoring import score_math
from benchmarks.text import (
    best_f1,
    exact_match,
    last_boxed,
    musique_f1,
    normalize_answer,
    token_f1,
)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}", "42"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{41} no, \boxed{42}", "42"),
        (r"\boxed{\boxed{42}}", "42"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed 42.", "42"),
        (r"\boxed {42}", "42"),
        (r"\fbox{42}", "42"),
        (r"\boxed{42} and \boxed{", "42"),
        (r"\boxed{}", ""),
        (r"\boxed{42", None),
        (r"\boxedness", None),
        ("42", None),
        ("", None),
    ],
)
def test_the_last_balanced_box_is_read(text, content):
    assert last_boxed(text) == content


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("1,000", "1000"),
        ("1{,}000", "1000"),
        (r"\$1,000", "1000"),
        ("18 dollars", "18"),
        (r"5\text{ cm}^2", "5"),
        ("90 degrees", r"90^\circ"),
        ("50%", r"\frac{1}{2}"),
        ("0.5", "50%"),
        ("3 1/2", "3.5"),
        ("x = 7", "7"),
        (r"\frac12", "0.5"),
        (r"2\sqrt{2}", r"\sqrt{8}"),
        (r"\{1, 2\}", r"\{2, 1\}"),
        ("(1,2)", "1<x<2"),
        (r"(1,\infty)\cup(-\infty,-1)", r"(-\infty,-1)\cup(1,\infty)"),
        ("[[1,2],[3,4]]", r"\begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}"),
        (r"\text{Even.}", "even"),
        (r"\textbf{(B)}", "B"),
        ("(x+1)(x-1)", "x^2-1"),
        ("2\u221a2", r"2\sqrt{2}"),
        ("\uff14\uff12", "42"),
        ("x\u00b2", "x^2"),
        ("\u00bd", "0.5"),
        ("0.333333", r"\frac13"),
    ],
)
def test_equal_mathematics_in_another_spelling_is_correct(answer, gold):
    assert math_equal(answer, gold).equal


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("-5", "5"),
        ("3.14", "314"),
        ("1,2", "12"),
        (r"\frac{1}{12}", r"\frac{11}{2}"),
        ("(2,1)", "(1,2)"),
        ("[1,2]", "(1,2)"),
        ("5 meters", "5 cm"),
        ("0.05", "5"),
        ("0.333", r"\frac13"),
        ("5x", "5"),
        (r"2\pi", "2"),
        ("5 million", "5"),
        ("42 or 43", "42"),
        ("not 42", "42"),
        ("x=5", "y=5"),
        ("2112_6", "2112_7"),
        (r"\frac{1}{2^{99}}", r"\frac{1}{2^{98}}"),
        ("\u0410", "A"),
        ("", "42"),
        ("__import__('os').getcwd()", "42"),
        ("lambda: 42", "42"),
    ],
)
def test_unequal_mathematics_is_wrong(answer, gold):
    assert not math_equal(answer, gold).equal


def test_plain_numbers_and_words_need_no_process():
    assert math_equal("18 dollars", "18").method == "number"
    assert math_equal("Natalia", "natalia").method == "word"
    assert math_equal("19", "18").method == "number"


def test_an_unboxed_answer_counts_only_with_a_single_number():
    task = Task("t", "q", ("18",), "number")
    assert score_math("She makes 18 dollars.", task).value == 1
    assert score_math("#### 18", task).value == 1
    assert score_math("16, 17, 18 or 19", task).value == 0
    assert score_math(r"18 \boxed{17}", task).value == 0


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("\\sqrt{5}", "5"),
        ("5x", "5"),
        ("5i", "5"),
        ("5!", "5"),
        ("2\\pi", "2"),
        ("\\frac{5}{x}", "5"),
        ("x \\neq 5", "5"),
        ("x > 5", "5"),
        ("5 million", "5"),
        ("minus 5", "5"),
        ("not 42", "42"),
        ("at least 42", "42"),
        ("5 squared", "5"),
        ("|5|x", "5"),
    ],
)
def test_mathematics_out_of_a_box_is_no_sentence_that_states_a_number(answer, gold):
    """An environment opens the box before it scores: the verdict is the same without the box."""
    task = Task("t", "q", (gold,), "latex")
    assert score_math(f"\\boxed{{{answer}}}", task).value == 0
    assert score_math(answer, task).value == 0


@pytest.mark.parametrize(
    "answer",
    [
        "She has 18 apples and is happy.",
        "It is $18.",
        "so 18 more dollars",
        "\\(18\\)",
        "#### 18<|im_end|>",
    ],
)
def test_a_sentence_may_state_its_number(answer):
    assert score_math(answer, Task("t", "q", ("18",), "number")).value == 1


@pytest.mark.parametrize(
    ("name", "gold"),
    [
        ("HotpotQA", "Ada Keller"),
        ("GAIA", "Ada Keller"),
        ("HLE", "B"),
        ("xbench-DeepSearch", "\u963f\u8fbe"),
    ],
)
@pytest.mark.parametrize("wrapper", ["text", "textbf", "mathrm"])
def test_a_text_command_around_an_answer_is_unwrapped_with_and_without_the_box(name, gold, wrapper):
    task = Task("t", "q", (gold,), "choice" if name == "HLE" else "span")
    for answer in (f"\\{wrapper}{{{gold}}}", f"\\boxed{{\\{wrapper}{{{gold}}}}}"):
        assert BENCHMARKS[name].score(answer, task).value == 1
        assert BENCHMARKS[name].training_score(answer, task).value == 1


def test_f1_counts_tokens_with_multiplicity_and_best_alias():
    """Two of three tokens against two: P = 2/3, R = 1, F1 = 0.8."""
    assert token_f1("Sir Ada Keller", "Ada Keller") == pytest.approx(0.8)
    assert token_f1("yes indeed", "yes") == 0
    assert musique_f1("yes indeed", "yes") == pytest.approx(2 / 3)
    assert best_f1("NYC", ("New York City", "NYC")) == 1
    assert best_f1("A", ("A",)) == 1
    assert best_f1("\u5317\u4eac\u5e02", ("\u5317\u4eac",), "zh") == pytest.approx(0.8)


def test_texts_that_normalise_to_nothing_do_not_match():
    assert exact_match("The Beatles!", "beatles")
    assert not exact_match("...", "A")
    assert not exact_match("", "")
    assert normalize_answer("The U.S.A. ") == "usa"


def test_gaia_keeps_its_own_rules():
    def score(answer, gold):
        return BENCHMARKS["GAIA"].score(answer, Task("g", "q", (gold,))).value

    assert score("$1,700", "1700") == 1
    assert score("a; b", "A, b") == 1
    assert score("b, a", "a, b") == 0
    assert score("O'Neill.", "ONeill") == 1
    assert score("seventeen", "17") == 0
    assert score("", "Paris") == 0


def test_the_reference_reward_pays_for_writing_closing_tags():
    both = arpo_reward(r"<think>a</think></search></python><answer>\boxed{42}</answer>", ["42"])
    assert both.reward == pytest.approx(1.1)
    assert arpo_reward(r"<answer>\boxed{42}</answer>", ["42"]).reward == -1


def test_pass_at_k_is_the_share_of_draws_with_a_correct_sample():
    """Two of four are correct, draw two: one of six pairs has neither, so 5/6."""
    assert pass_at_k(4, 2, 2) == pytest.approx(5 / 6)
    assert pass_at_k(5, 0, 5) == 0
    with pytest.raises(ValueError, match="lower k"):
        pass_at_k(3, 0, 5)


def test_calibration_counts_the_last_bin():
    """Bins of one: gaps 0.5 and 0.2, so sqrt((0.25 + 0.04) / 2); officially sqrt(0.25 / 2)."""
    confidence, correct = [0.5, 0.8], [False, True]
    assert calibration_error(confidence, correct, 1) == pytest.approx(0.145**0.5)
    official = calibration_error(confidence, correct, 1, count_last=False)
    assert official == pytest.approx(0.125**0.5)
