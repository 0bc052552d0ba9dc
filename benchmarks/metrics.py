"""Statistics over many graded answers: pass@k and calibration error."""

from __future__ import annotations

import math
from collections.abc import Sequence


def pass_at_k(samples: int, correct: int, k: int) -> float:
    """Estimate without bias how likely one of k samples is correct: 1 - C(n-c, k) / C(n, k).

    Raises:
        ValueError: k is larger than the number of samples, or the counts make no sense.
    """
    if not 0 <= correct <= samples or not 1 <= k <= samples:
        raise ValueError(
            f"pass@{k} of {correct} correct among {samples} samples: expected "
            "0 <= correct <= samples and 1 <= k <= samples; draw more samples or lower k"
        )
    if samples - correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(samples - correct + 1, samples + 1))


def calibration_error(
    confidence: Sequence[float],
    correct: Sequence[bool],
    bin_size: int = 100,
    *,
    count_last: bool = True,
) -> float:
    """Compute the root of the mean squared gap between confidence and accuracy over bins.

    This is the measure of Humanity's Last Exam. The official script leaves out the last bin, so
    that it returns 0 for 100 to 199 answers and fails below 100; report it next to the corrected
    number.

    Args:
        confidence: in [0, 1].
        correct: of the same length.
        bin_size: answers per bin, sorted by confidence; the last bin takes the remainder too.
        count_last: False for the official number.
    """
    pairs = sorted(zip(confidence, correct, strict=True), key=lambda pair: pair[0])
    if not pairs:
        raise ValueError("no answers to measure calibration on")
    starts = [i * bin_size for i in range(max(1, len(pairs) // bin_size))]
    bins = list(zip(starts, [*starts[1:], len(pairs)], strict=True))
    total = 0.0
    for start, end in bins if count_last else bins[:-1]:
        members = pairs[start:end]
        gap = sum(c for c, _ in members) / len(members) - sum(r for _, r in members) / len(members)
        total += len(members) * gap * gap
    return math.sqrt(total / len(pairs))
