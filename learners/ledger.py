"""Counts what a run costs: tokens sampled and reused, calls made and inherited, seconds by phase.

A `Ledger` counts one iteration or evaluation. A `RunUsage` holds the totals of the run over all its
processes and refuses calls beyond the run's `Budget`.
"""

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

JUDGE = "judge"
"""Name of the judge among those of tools, in prices and calls."""

USAGE_PREFIXES = ("sampled_tokens", "tool_calls", "free_calls", "judge_")
"""Beginnings of the counters whose totals a run keeps; calls also by tool: `tool_calls_search`."""

LOST_WORK = {
    "lost_tokens": "sampled_tokens",
    "lost_calls": "tool_calls",
    "lost_judge_calls": "judge_calls",
}
"""Counter of discarded work -> the counter it was added to when it was done."""

StopUnit = Literal["tokens", "flops", "calls", "seconds"]

UNIT_METRICS: dict[StopUnit, str] = {
    "tokens": "ledger/sampled_tokens",
    "flops": "ledger/flops",
    "calls": "ledger/tool_calls",
    "seconds": "seconds/iteration",
}
"""The metric that counts a unit."""


@dataclass(frozen=True)
class Budget:
    """Limits on the use of a run; None is no limit."""

    calls: int | None = None
    """Tool calls."""
    cost: float | None = None
    """Cost in the unit of the prices."""
    prices: tuple[tuple[str, float], ...] = ()
    """(tool or judge, price of a call). A free call costs nothing, yet is made only if its price is
    left."""

    def cost_of(self, counts: Mapping[str, int]) -> Decimal:
        """Return the exact cost of the calls in a run's totals."""
        paid = {
            name: counts.get(_call_counters(name)[-1], 0)
            - counts.get(_free_call_counters(name)[-1], 0)
            for name, _ in self.prices
        }
        # Decimals: the sum of three prices of 0.1 must not exceed a budget of 0.3.
        return sum((paid[name] * Decimal(str(price)) for name, price in self.prices), Decimal(0))

    def admit(self, tool: str, counts: Mapping[str, int]) -> None:
        """Check that one more call fits into the budget.

        Args:
            tool: name of the tool, or `JUDGE`.
            counts: totals of the run.

        Raises:
            RunStopped: it does not fit.
        """
        more = "give more and run the same command: it resumes from the last checkpoint"
        max_calls = None if tool == JUDGE else self.calls
        if max_calls is not None and counts.get("tool_calls", 0) >= max_calls:
            raise RunStopped(f"the {max_calls} tool calls of --run-calls are spent; {more}")
        price, cost = Decimal(str(dict(self.prices).get(tool, 0))), self.cost_of(counts)
        if self.cost is not None and price > 0 and cost + price > Decimal(str(self.cost)):
            raise RunStopped(
                f"a call of {tool} costs {price}, and {cost} of --run-cost {self.cost:g} are "
                f"spent; {more}"
            )


class RunUsage:
    """Totals of a run over all its processes. Thread-safe; mutated by every call and turn.

    Every change is written in place to one small file, so that a SIGKILL neither tears the file nor
    loses a change. If the machine itself fails, the last seconds may be missing.
    """

    def __init__(
        self,
        budget: Budget = Budget(),
        path: Path | None = None,
        initial: Mapping[str, int] | None = None,
    ) -> None:
        """Continue from the totals in the file.

        Args:
            budget: bounds the usage of this and all earlier processes.
            path: the file; None: totals and bounds are of this process alone.
            initial: totals to start from if there is no file yet.

        Raises:
            RunStopped: the file holds something else.
        """
        self.budget = budget
        self._path, self._lock, self._file_length = path, threading.Lock(), 0
        self._totals = Counter(initial or {})
        if path is not None and path.exists():
            try:
                text = path.read_text()
                self._file_length = len(text)
                self._totals = Counter({str(k): int(v) for k, v in dict(json.loads(text)).items()})
            except (ValueError, TypeError) as error:
                raise RunStopped(f"{path} holds no totals; delete it to count anew") from error

    def totals(self) -> Counter[str]:
        """Return a copy of the totals."""
        with self._lock:
            return self._totals.copy()

    def add(self, name: str, amount: int) -> None:
        """Add to a counter."""
        with self._lock:
            self._add({name: amount})

    def begin_call(self, tool: str) -> None:
        """Count a call before it is made, so that a kill during the call does not hide it.

        Raises:
            RunStopped: the budget has no such call left.
        """
        with self._lock:
            self.budget.admit(tool, self._totals)
            self._add(dict.fromkeys(_call_counters(tool), 1))

    def cancel_call(self, tool: str) -> None:
        """Uncount a call that failed and brought nothing."""
        with self._lock:
            self._add(dict.fromkeys(_call_counters(tool), -1))

    def count_free_call(self, tool: str) -> None:
        """Count a call that turned out to cost nothing."""
        with self._lock:
            self._add(dict.fromkeys(_free_call_counters(tool), 1))

    def _add(self, amounts: Mapping[str, int]) -> None:
        self._totals.update(amounts)
        if self._path is None:
            return
        text = json.dumps(self._totals) + "\n"
        # A shorter text is padded to cover the one before: truncating the file would be a second
        # step, and a kill between the two would leave a torn file.
        self._file_length = max(self._file_length, len(text))
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(handle, text.ljust(self._file_length).encode(), 0)
        finally:
            os.close(handle)


class Ledger:
    """Exact counts of an iteration, added up thread-safely. `take` returns and clears them."""

    def __init__(self, usage: RunUsage | None = None) -> None:
        """Start empty.

        Args:
            usage: totals of the run, with its budget; None: totals of their own, without bounds.
        """
        self.usage = usage or RunUsage()
        self._counts: Counter[str] = Counter()
        self._attempts: Counter[int] = Counter()
        self._failures: Counter[int] = Counter()
        self._seconds: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()
        self.watch: Callable[[str], AbstractContextManager[object]] = nullcontext
        """Makes a context from a phase's name; entered around the phase."""

    def add(self, name: str, amount: int = 1) -> None:
        """Add to a counter of this ledger alone."""
        with self._lock:
            self._counts[name] += amount

    def add_sampled_tokens(self, tokens: int) -> None:
        """Count tokens that the policy sampled."""
        self.usage.add("sampled_tokens", tokens)
        self.add("sampled_tokens", tokens)

    def run(self, tool: Tool[Any], state: Any, argument: str) -> tuple[Any, ToolResult]:  # noqa: ANN401 - a state is the tool's own
        """Run a tool within the run's budget; a call that fails is not counted.

        Raises:
            RunStopped: the budget has no such call left.
        """
        self.usage.begin_call(tool.name)
        try:
            new_state, result = tool.run(state, argument)
        except BaseException:
            self.usage.cancel_call(tool.name)
            raise
        self.add("tool_calls")
        self.add(f"tool_calls_{tool.name}")
        if result.free:
            self.usage.count_free_call(tool.name)
            self.add("free_calls")
            self.add(f"free_calls_{tool.name}")
        return new_state, result

    def count_judgement(self, requests: int, ok: bool) -> None:
        """Count what came of asking the judge, after `usage.begin_call`.

        Args:
            requests: sent to the judge; 0 if it had given this verdict before.
            ok: the last request brought a verdict; all others, or else all, are faults.
        """
        faults = requests - (ok and requests > 0)
        if faults:
            self.usage.add("judge_faults", faults)
            self.add("judge_faults", faults)
        if not ok:
            self.usage.cancel_call(JUDGE)
            return
        self.add("judge_calls")
        if not requests:
            self.usage.count_free_call(JUDGE)
            self.add("judge_cached")

    def count_attempt(self, earlier_calls: int, ok: bool) -> None:
        """Count a call by the number of calls its episode had made before.

        Args:
            earlier_calls: of the same episode.
            ok: False if the tool was unavailable.
        """
        with self._lock:
            self._attempts[earlier_calls] += 1
            self._failures[earlier_calls] += not ok

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Measure the seconds of wall clock inside the block."""
        start = time.perf_counter()
        try:
            with self.watch(name):
                yield
        finally:
            with self._lock:
                self._seconds[name] += time.perf_counter() - start

    def count_reuse(self, trees: Sequence[RolloutTree]) -> None:
        """Count the tokens and calls that branches took over from their parents for free."""
        for tree in trees:
            for branch in tree.branches:
                assert branch.parent is not None
                mask = branch.response_mask[: branch.parent.position]
                self.add("reused_tokens", sum(mask))
                # By identity: a branch may sample its parent's very turn anew, and pays for it.
                pairs = zip(branch.turns, branch.parent.trajectory.turns, strict=False)
                shared = sum(1 for _ in takewhile(lambda pair: pair[0] is pair[1], pairs))
                start = branch.turns[shared].state if shared < len(branch.turns) else branch.state
                self.add("inherited_calls", len(start.calls))

    def take(self) -> dict[str, float]:
        """Return everything since the last call as metrics and start anew."""
        with self._lock:
            metrics: dict[str, float] = {f"ledger/{k}": v for k, v in self._counts.items()}
            metrics |= {f"seconds/{k}": round(v, 4) for k, v in self._seconds.items()}
            if self.usage.budget.prices:
                metrics["ledger/cost"] = float(self.usage.budget.cost_of(self._counts))
            for calls, failures in self._failures.items():
                if failures:
                    share = failures / self._attempts[calls]
                    metrics[f"tools/unavailable_after_{calls}"] = share
            for counts in (self._counts, self._seconds, self._attempts, self._failures):
                counts.clear()
        return metrics


def recorded_usage(rows: Iterable[Mapping[str, Any]]) -> Counter[str]:
    """Return the totals that stored metrics add up to, lost work included.

    Args:
        rows: metrics of iterations and evaluations.
    """
    totals: Counter[str] = Counter()
    for row in rows:
        for name, amount in row.items():
            counter = name.removeprefix("ledger/")
            counter = LOST_WORK.get(counter, counter)
            if name.startswith("ledger/") and counter.startswith(USAGE_PREFIXES):
                totals[counter] += int(amount)
    return totals


def amount_used(lines: Sequence[Mapping[str, Any]], unit: StopUnit) -> float:
    """Return how much of a unit the iterations of some lines of metrics used."""
    return sum(float(line.get(UNIT_METRICS[unit], 0.0)) for line in lines)


def extract_judge_usage(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the judge's part of a ledger's metrics: calls, cached, faults and, if priced, cost."""
    names = ("calls", "cached", "faults")
    usage = {name: metrics.get(f"ledger/judge_{name}", 0) for name in names}
    return usage | ({"cost": metrics["ledger/cost"]} if "ledger/cost" in metrics else {})


def policy_flops(parameters: int, metrics: Mapping[str, float]) -> float:
    """Return the operations of the policy's matrix products in an iteration.

    2 per parameter and token forward, 4 backward (arXiv 2001.08361, section 2.1); attention's
    share, which grows with the length, is left out. Every token counts as if it were computed
    alone: if rows share a prefix, the machine may do less.
    """

    def tokens(name: str) -> float:
        return metrics.get(f"ledger/{name}_tokens", 0.0)

    forward = tokens("sampled") + tokens("prefilled") + tokens("scored")
    return parameters * (2.0 * forward + 6.0 * tokens("updated"))


def _call_counters(name: str) -> tuple[str, ...]:
    """Return the counters of a call; the last one is of the tool, or of the judge, alone."""
    return ("judge_calls",) if name == JUDGE else ("tool_calls", f"tool_calls_{name}")


def _free_call_counters(name: str) -> tuple[str, ...]:
    """Return the counters of a call that cost nothing; the last one as in `_call_counters`."""
    return ("judge_cached",) if name == JUDGE else ("free_calls", f"free_calls_{name}")
