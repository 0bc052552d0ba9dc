"""When a run is over: its iterations are done, or its budget is reached.

A budget counts what training spent; evaluations and discarded work are not part of it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from learners.run_config import RunConfig, StopUnit, UsageError

SPENT: dict[StopUnit, str] = {
    "tokens": "ledger/sampled_tokens",
    "flops": "ledger/flops",
    "calls": "ledger/tool_calls",
    "seconds": "seconds/iteration",
}
"""The metric that counts a unit."""


def spent(lines: Sequence[Mapping[str, Any]], unit: StopUnit) -> float:
    """What the iterations of some lines of metrics spent."""
    return sum(float(line.get(SPENT[unit], 0.0)) for line in lines)


def over(config: RunConfig, done: int, lines: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run has done its iterations, or its lines of metrics reach its budget."""
    reached = any(spent(lines, unit) >= amount for unit, amount in config.stop_at)
    return done >= config.iterations or reached


def refuse_budget(config: RunConfig) -> None:
    """Nothing if a run can stop where its config says.

    Raises:
        UsageError: an amount is not above 0.
    """
    for unit, amount in config.stop_at:
        if amount <= 0:
            raise UsageError(f"--stop-at {unit} {amount:g}: expected more than 0")


def policy_flops(parameters: int, metrics: Mapping[str, float]) -> float:
    """Operations of the policy's matrix products in an iteration.

    2 a parameter and token forward, 4 backward (arXiv 2001.08361, section 2.1); attention's share,
    which grows with the length, is left out. Every token counts as if it were computed alone:
    where rows share a prefix the machine may do less.
    """

    def tokens(name: str) -> float:
        return metrics.get(f"ledger/{name}_tokens", 0.0)

    forward = tokens("sampled") + tokens("prefilled") + tokens("scored")
    return parameters * (2.0 * forward + 6.0 * tokens("updated"))
