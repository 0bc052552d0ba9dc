"""What a run cost: tokens sampled and reused, calls made and inherited, seconds by phase."""

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import takewhile
from typing import Any

from learners.spending import JUDGE, Spending
from learners.tree import RolloutTree
from tools import Tool, ToolResult


class Ledger:
    """Exact counts, by thread-safe addition. `take` empties it: one entry per iteration."""

    def __init__(self, spending: Spending | None = None) -> None:
        """An empty ledger; what it counts is spent of `spending`, or of no bound."""
        self.spending = spending or Spending()
        self._counts: Counter[str] = Counter()
        self._tried: Counter[int] = Counter()
        self._failed: Counter[int] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self.watch: Callable[[str], AbstractContextManager[object]] = nullcontext
        """Entered around each phase, with its name."""

    def add(self, name: str, amount: int = 1) -> None:
        """Count something by a name of its own."""
        with self._lock:
            self._counts[name] += amount

    def sampled(self, tokens: int) -> None:
        """Tokens that the policy sampled."""
        self.spending.add("sampled_tokens", tokens)
        self.add("sampled_tokens", tokens)

    def run(self, tool: Tool[Any], state: Any, argument: str) -> tuple[Any, ToolResult]:  # noqa: ANN401 - a state is the tool's own
        """Run a tool, within what the run may spend; a call that fails is not counted.

        Raises:
            RunStopped: no call is left.
        """
        self.spending.begin(tool.name)
        try:
            following, result = tool.run(state, argument)
        except BaseException:
            self.spending.take_back(tool.name)
            raise
        self.add("tool_calls")
        self.add(f"tool_calls_{tool.name}")
        if result.free:
            self.spending.free(tool.name)
            self.add("free_calls")
            self.add(f"free_calls_{tool.name}")
        return following, result

    def judged(self, requests: int, ok: bool) -> None:
        """A verdict was asked for after `spending.begin`; what came of it.

        Args:
            requests: sent to the judge; none where it had given this verdict before.
            ok: the last of them brought a verdict; those before it, or else all, brought none.
        """
        faults = requests - (ok and requests > 0)
        if faults:
            self.spending.add("judge_faults", faults)
            self.add("judge_faults", faults)
        if not ok:
            self.spending.take_back(JUDGE)
            return
        self.add("judge_calls")
        if not requests:
            self.spending.free(JUDGE)
            self.add("judge_cached")

    def reached(self, calls: int, ok: bool) -> None:
        """A call was made after so many others of its episode; not ok: its tool was unavailable."""
        with self._lock:
            self._tried[calls] += 1
            self._failed[calls] += not ok

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Seconds of wall clock inside the block."""
        start = time.perf_counter()
        try:
            with self.watch(name):
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
            if self.spending.budget.prices:
                metrics["ledger/cost"] = float(self.spending.budget.cost_of(self._counts))
            for calls, failed in self._failed.items():
                if failed:
                    metrics[f"tools/unavailable_after_{calls}"] = failed / self._tried[calls]
            for counts in (self._counts, self._seconds, self._tried, self._failed):
                counts.clear()
        return metrics
