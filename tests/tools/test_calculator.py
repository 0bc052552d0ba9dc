"""The calculator: arithmetic and nothing else, whatever text it is given."""

import warnings

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tools import CalculatorTool, ToolContext

TOOL = CalculatorTool()


def answer(argument):
    return TOOL.run(None, argument)[1].text


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("(3 + 4) * 2", "14"),
        ("7 - 10", "-3"),
        ("-(2 + 3)", "-5"),
        ("+3", "3"),
        ("1 / 3", "0.333333333333"),
        ("0.1 + 0.2", "0.3"),
        ("7 // 2", "3"),
        ("-7 % 4", "1"),
        ("1.5e3", "1500"),
        ("1_000 + 1", "1001"),
        (" 2 +\n 3\t", "5"),
        ("0 * -1", "0"),
        ("99999999 * 9999999", "999999890000001"),
        ("1e15", "1000000000000000"),
        ("1 / 1e9", "1e-09"),
    ],
)
def test_arithmetic_is_computed_and_whole_numbers_are_exact(expression, value):
    state, result = TOOL.run(None, expression)
    assert (state, result.text, result.ok) == (None, value, True)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ("", "incomplete"),
        ("1 +", "incomplete"),
        ("(1", "incomplete"),
        ("2 ** 9", "only numbers"),
        ("2 ^ 3", "only numbers"),
        ("1,000 + 1", "only numbers"),
        ("1j", "only numbers"),
        ("True", "only numbers"),
        ("1 < 2", "only numbers"),
        ("abs(1)", "only numbers"),
        ("(1)(2)", "only numbers"),
        ("__import__('os').system('true')", "only numbers"),
        ("\u0661 + 1", "only numbers"),
        ("\ud800", "only numbers"),
        ("1\x00", "only numbers"),
        ("1 / 0", "division by zero"),
        ("5 // 0", "division"),
        ("5 % 0", "modulo"),
        ("1e999", "too large"),
        ("1e15 + 1", "too large"),
        ("9" * 190, "too large"),
        ("1 + " * 60 + "1", "241 characters; at most 200"),
        ("(" * 100 + "1" + ")" * 99, "badly nested"),
    ],
)
def test_anything_else_is_answered_with_what_is_wrong(expression, complaint):
    state, result = TOOL.run(None, expression)
    assert (state, result.ok) == (None, False)
    assert result.text.startswith("Cannot compute that: ")
    assert complaint in result.text


def test_the_deepest_nesting_that_fits_is_answered():
    assert answer("(" * 99 + "1" + ")" * 99) == "1"
    assert answer("-" * 199 + "1") == "-1"


@given(st.text(max_size=210) | st.text("0123456789.eE_+-*/%() \n", max_size=210))
def test_no_text_raises_or_warns(argument):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert answer(argument)


def test_it_remembers_nothing():
    assert TOOL.initial_state(ToolContext(seed=1)) is None
    TOOL.close()
    assert answer("1 + 1") == "2"
