"""Learning rates that change over a run."""

import math
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from learners.run_config import RunConfig

Schedule = Literal["constant", "linear", "cosine"]


def paced(config: "RunConfig") -> bool:
    """Whether what an iteration computes depends on how many there are."""
    return config.schedule != "constant" or config.warmup > 0 or config.curriculum > 0


def multiplier(schedule: Schedule, warmup: float, iteration: int, iterations: int) -> float:
    """What the learning rate is multiplied by in an iteration.

    Args:
        schedule: constant; linear, falls to 0; cosine, falls to 0 along half a cosine.
        warmup: share of the iterations in which the rate rises in equal steps.
        iteration: from 0.
        iterations: of the whole run.

    Returns:
        In (0, 1]: the first iteration trains, and so does the last.
    """
    rising = round(warmup * iterations)
    if iteration < rising:
        return (iteration + 1) / (rising + 1)
    left = (iterations - iteration) / max(iterations - rising, 1)  # from 1 down to 1 / falling
    if schedule == "linear":
        return left
    if schedule == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    return 1.0
