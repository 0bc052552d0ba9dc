"""Budgets: a run ends after the iteration that reaches its own, and says what it was worth."""

import json

import pytest

from learners.config import RunConfig
from learners.ledger import amount_used, policy_flops
from learners.runs.evaluation import has_reached_limit
from learners.runs.training import main
from tests.learners.runs.test_evaluation import arguments, lines_of
from tests.learners.test_commands import refused

LINES = [{"ledger/sampled_tokens": 30, "ledger/tool_calls": 2, "seconds/iteration": 1.5}] * 2


def test_what_was_spent_is_the_sum_over_iterations():
    assert [amount_used(LINES, unit) for unit in ("tokens", "calls", "seconds")] == [60, 4, 3.0]


@pytest.mark.parametrize(
    ("stop_at", "ends"),
    [((), False), ((("tokens", 60),), True), ((("tokens", 61),), False), ((("calls", 3),), True)],
)
def test_a_run_is_over_when_its_budget_is_reached(stop_at, ends):
    assert has_reached_limit(RunConfig.of(stop_at=stop_at), 2, LINES) is ends
    assert has_reached_limit(RunConfig.of(stop_at=stop_at, iterations=2), 2, LINES)


def test_operations_count_two_forward_and_six_with_the_backward_pass():
    """10 (2 (1 + 2 + 3) + 6 * 4) = 360"""
    counted = {"ledger/sampled_tokens": 1, "ledger/prefilled_tokens": 2, "ledger/scored_tokens": 3}
    assert policy_flops(10, {**counted, "ledger/updated_tokens": 4}) == 360


def test_a_budget_of_nothing_is_refused(capsys, tmp_path):
    said = refused(capsys, f"--stop-at tokens 0 --out {tmp_path}/run")
    assert "--stop-at tokens 0: expected more than 0" in said


def test_a_run_stops_at_its_budget_validates_there_and_goes_on_with_more(taught, tmp_path):
    main("learners.grpo", arguments(taught, tmp_path, 50, "--stop-at", "tokens", "1"))
    (line,) = lines_of(tmp_path)
    assert "validation/score" in line
    assert line["ledger/flops"] > 2 * line["ledger/sampled_tokens"]
    rows = json.loads((tmp_path / "validation" / "000001.json").read_text())["tasks"]
    assert sum(row["score"] for row in rows) / 3 == line["validation/score"]
    more = line["ledger/sampled_tokens"] + 1
    main("learners.grpo", arguments(taught, tmp_path, 50, "--stop-at", "tokens", str(more)))
    assert len(lines_of(tmp_path)) == 2
