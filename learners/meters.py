"""What resources count by themselves, as what an iteration added to the ledger."""

from typing import TYPE_CHECKING

from learners.sampler import TransformersSampler
from tools import PythonTool

if TYPE_CHECKING:
    from learners.rollout import Rollouts


def readings(rollouts: "Rollouts") -> dict[str, int]:
    """Counters as they stand; they only rise, also while others than the iteration use them.

    Args:
        rollouts: its sampler and tools are read. Only the built-in sampler tells what it prefills.
    """
    pythons = [tool for tool in rollouts.env.tools if isinstance(tool, PythonTool)]
    found = {
        "forked_states": sum(tool.forks for tool in pythons),
        "replayed_states": sum(tool.replays for tool in pythons),
    }
    if isinstance(rollouts.sampler, TransformersSampler):
        found["prefilled_tokens"] = rollouts.sampler.prefilled_tokens
    return found


def add_since(before: dict[str, int], rollouts: "Rollouts") -> None:
    """Add to the ledger what the counters have risen by since they were read."""
    for name, value in readings(rollouts).items():
        rollouts.ledger.add(name, value - before[name])
