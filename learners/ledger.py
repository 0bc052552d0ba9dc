"""What a run cost: tokens sampled and reused, calls made and inherited, seconds by phase."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from decimal import Decimal
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

from learners.errors import RunStopped
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


StopUnit = Literal["tokens", "flops", "calls", "seconds"]


JUDGE = "judge"
"""What the judge is called where tools have their names: among prices and calls."""


KEPT = ("sampled_tokens", "tool_calls", "free_calls", "judge_")
"""What is counted for the whole run; calls also by tool, as in `tool_calls_search`."""


LOST = {
    "lost_tokens": "sampled_tokens",
    "lost_calls": "tool_calls",
    "lost_judge_calls": "judge_calls",
}
"""By what name a ledger tells of discarded work, and as what it was spent."""


@dataclass(frozen=True)
class Budget:
    """What a run may spend; None is no bound."""

    calls: int | None = None
    """Tool calls."""
    cost: float | None = None
    """In the unit of the prices."""
    prices: tuple[tuple[str, float], ...] = ()
    """(tool or judge, price of a call). A free call costs nothing, yet is made only if its price is
    left."""

    def cost_of(self, counts: Mapping[str, int]) -> Decimal:
        """What counts named as in `KEPT` cost, exactly."""
        paid = {
            name: counts.get(_made(name)[-1], 0) - counts.get(_free(name)[-1], 0)
            for name, _ in self.prices
        }
        return sum((paid[name] * Decimal(str(price)) for name, price in self.prices), Decimal(0))

    def admit(self, tool: str, spent: Mapping[str, int]) -> None:
        """Nothing if one more call of the tool, or of the judge, is left.

        Raises:
            RunStopped: it is not.
        """
        more = "give more and run the same command: it resumes from the last checkpoint"
        most = None if tool == JUDGE else self.calls
        if most is not None and spent.get("tool_calls", 0) >= most:
            raise RunStopped(f"the {most} tool calls of --run-calls are spent; {more}")
        price, cost = Decimal(str(dict(self.prices).get(tool, 0))), self.cost_of(spent)
        if self.cost is not None and price > 0 and cost + price > Decimal(str(self.cost)):
            raise RunStopped(
                f"a call of {tool} costs {price}, and {cost} of --run-cost {self.cost:g} are "
                f"spent; {more}"
            )


class Spending:
    """Totals of a run over all its processes. Thread-safe; mutated by every call and turn.

    They are written into one small file in place, with every change: a SIGKILL neither tears nor
    loses one. Where the machine itself fails, the last seconds may be missing.
    """

    def __init__(
        self,
        budget: Budget = Budget(),
        path: Path | None = None,
        before: Mapping[str, int] | None = None,
    ) -> None:
        """Go on from what the file holds.

        Args:
            budget: bounds what is spent, by this and all earlier processes.
            path: the file; None: nothing is kept and the bounds are this process's.
            before: totals to begin with where there is no file yet.

        Raises:
            RunStopped: the file holds something else.
        """
        self.budget = budget
        self._path, self._lock, self._longest = path, threading.Lock(), 0
        self._totals = Counter(before or {})
        if path is not None and path.exists():
            try:
                text = path.read_text()
                self._longest = len(text)
                self._totals = Counter({str(k): int(v) for k, v in dict(json.loads(text)).items()})
            except (ValueError, TypeError) as error:
                raise RunStopped(f"{path} holds no totals; delete it to count anew") from error

    def totals(self) -> Counter[str]:
        """A copy of the counts."""
        with self._lock:
            return self._totals.copy()

    def add(self, name: str, amount: int) -> None:
        """Count something."""
        with self._lock:
            self._add({name: amount})

    def begin(self, tool: str) -> None:
        """Count a call that is about to be made, so that a kill meanwhile does not hide it.

        Raises:
            RunStopped: no such call is left.
        """
        with self._lock:
            self.budget.admit(tool, self._totals)
            self._add(dict.fromkeys(_made(tool), 1))

    def take_back(self, tool: str) -> None:
        """The call failed: nothing was had for it."""
        with self._lock:
            self._add(dict.fromkeys(_made(tool), -1))

    def free(self, tool: str) -> None:
        """The call turned out to cost nothing."""
        with self._lock:
            self._add(dict.fromkeys(_free(tool), 1))

    def _add(self, amounts: Mapping[str, int]) -> None:
        self._totals.update(amounts)
        if self._path is None:
            return
        text = json.dumps(self._totals) + "\n"
        self._longest = max(self._longest, len(text))
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(handle, text.ljust(self._longest).encode(), 0)
        finally:
            os.close(handle)


def _made(name: str) -> tuple[str, ...]:
    """What counts a call, that of the tool or the judge itself last."""
    return ("judge_calls",) if name == JUDGE else ("tool_calls", f"tool_calls_{name}")


def _free(name: str) -> tuple[str, ...]:
    """What counts a call that cost nothing."""
    return ("judge_cached",) if name == JUDGE else ("free_calls", f"free_calls_{name}")


def recorded(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """What iterations and evaluations that are kept on file say was spent, lost work included."""
    found: Counter[str] = Counter()
    for row in rows:
        for name, amount in row.items():
            plain = name.removeprefix("ledger/")
            plain = LOST.get(plain, plain)
            if name.startswith("ledger/") and plain.startswith(KEPT):
                found[plain] += int(amount)
    return found


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


def spent_on_judging(counts: Mapping[str, float]) -> dict[str, float]:
    """What a ledger's metrics say of the judge: calls, cached, faults and, where priced, cost."""
    names = ("calls", "cached", "faults")
    found = {name: counts.get(f"ledger/judge_{name}", 0) for name in names}
    return found | ({"cost": counts["ledger/cost"]} if "ledger/cost" in counts else {})
