"""Observations of an iteration that become its metrics."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence


class Recorder:
    """Means and counters of one iteration. Mutated by all its methods."""

    def __init__(self) -> None:
        self._observations: defaultdict[str, list[float]] = defaultdict(list)
        self._counters: defaultdict[str, int] = defaultdict(int)

    def note(self, name: str, values: Sequence[float]) -> None:
        """Add observations; their mean becomes a metric."""
        self._observations[name].extend(values)

    def count(self, name: str, amount: int) -> None:
        """Add to a counter."""
        self._counters[name] += amount

    def take(self) -> dict[str, float]:
        """Return the metrics since the last call and start anew."""
        metrics = {name: sum(v) / len(v) for name, v in self._observations.items() if v}
        metrics |= {name: float(amount) for name, amount in self._counters.items()}
        self._observations.clear()
        self._counters.clear()
        return metrics
