"""What a run cost: tokens sampled and reused, calls made and inherited, seconds by phase."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile

from learners.tree import RolloutTree


class Ledger:
    """Exact counts, by thread-safe addition. `take` empties it: one entry per iteration."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def add(self, name: str, amount: int = 1) -> None:
        """Count something by a name of its own."""
        with self._lock:
            self._counts[name] += amount

    def sampled(self, tokens: int) -> None:
        """Tokens that the policy sampled."""
        self.add("sampled_tokens", tokens)

    def called(self, tool: str) -> None:
        """A tool call that was executed."""
        self.add("tool_calls")
        self.add(f"tool_calls_{tool}")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds of wall clock inside the block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            with self._lock:
                self._seconds[name] += time.perf_counter() - start

    def inherited(self, trees: Sequence[RolloutTree]) -> None:
        """Count what branches shared with their parents instead of paying for it."""
        for tree in trees:
            for branch in tree.branches:
                assert branch.parent is not None
                mask = branch.response_mask[: branch.parent.position]
                self.add("reused_tokens", sum(mask))
                # By identity: a branch may sample its parent's very turn anew, and pays for it.
                pairs = zip(branch.turns, branch.parent.trajectory.turns, strict=False)
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
                begun = branch.turns[shared].state if shared < len(branch.turns) else branch.state
                self.add("inherited_calls", len(begun.calls))

    def take(self) -> dict[str, float]:
        """Everything since the last time, as metrics."""
        with self._lock:
            metrics: dict[str, float] = {f"ledger/{k}": v for k, v in self._counts.items()}
            metrics |= {f"seconds/{k}": round(v, 4) for k, v in self._seconds.items()}
            self._counts.clear()
            self._seconds.clear()
        return metrics
