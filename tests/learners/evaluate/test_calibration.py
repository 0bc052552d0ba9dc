"""Stated confidence: asked for, read from answers, and compared with how often they were right."""

import pytest

from benchmarks import BENCHMARKS, Task
from learners.evaluate.config import Config, make_environment
from learners.evaluate.episodes import Episode
from learners.evaluate.grading import (
    Calibration,
    calibrate,
    grade,
    stated_confidence,
    summarise,
)
from learners.evaluate.tables import official_cell

TASK = Task("t", "Which letter?", ("B",), "choice")


@pytest.mark.parametrize(
    ("text", "share"),
    [
        ("<answer>Confidence: 70% \\boxed{B}</answer>", 0.7),
        ("**Confidence:** 85 %", 0.85),
        ("confidence = 0.25", 0.25),
        ("Confidence: 0.5%", 0.005),
        ("Confidence: 1%", 0.01),
        ("Confidence: 30%. No: confidence: 60%", 0.6),
        ("Confidence: 400%", None),
        ("confidence is high", None),
        ("", None),
        ("confidence" * 20_000, None),
    ],
)
def test_the_last_stated_confidence_is_read(text, share):
    assert stated_confidence(text) == (None if share is None else pytest.approx(share))


def test_an_answer_without_a_confidence_counts_as_certain():
    """Bins of 100: one bin of two answers, mean confidence 0.9, accuracy 0.5: error 0.4."""
    found = calibrate([0.8, None], [True, False])
    assert found == Calibration(pytest.approx(0.4), None, 1)


def test_the_authors_number_leaves_the_last_bin_out():
    """200 answers: the first bin is off by 0.5, the last by 0.1."""
    confidence = [0.5] * 100 + [0.9] * 100
    found = calibrate(confidence, [False] * 100 + [True] * 100)
    assert found.value == pytest.approx(((0.25 + 0.01) / 2) ** 0.5)
    assert found.official == pytest.approx((0.25 / 2) ** 0.5)


def episode(text, sample):
    box = text.partition("\\boxed{")[2].partition("}")[0]
    return Episode("t", sample, f"\\boxed{{{box}}}", "answered", (), 3, (text,))


def test_graded_episodes_have_a_calibration_where_one_states_a_confidence():
    """0.6 and right, certain and wrong, no answer: |0.8 - 0.5| over the two answers."""
    said = ["<answer>Confidence: 60% \\boxed{B}</answer>", "<answer>\\boxed{A}</answer>"]
    episodes = [episode(text, i) for i, text in enumerate(said)]
    episodes.append(Episode("t", 2, None, "length", (), 3, ("Confidence: 10%",)))
    verdicts = [grade(BENCHMARKS["HLE"], TASK, one) for one in episodes]
    assert [v.confidence for v in verdicts] == [0.6, None, None]
    found = summarise(verdicts)
    assert found.calibration == Calibration(pytest.approx(0.3), None, 1)
    assert "calibration error 0.300 (authors' script: none)" in official_cell(found, "score_choice")
    assert summarise(verdicts[1:]).calibration is None


def test_a_confidence_is_asked_for_on_demand():
    asked = make_environment("appo/HLE-v0", Config(confidence=True)).instructions
    plain = make_environment("appo/HLE-v0", Config()).instructions
    assert "Confidence: 70%" in asked
    assert "onfidence" not in plain
