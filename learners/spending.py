"""What a run has spent since it began, whatever was killed meanwhile, and what it may spend."""

import json
import os
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

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


class RunStopped(RuntimeError):
    """A run must not go on as it is. Its checkpoints are whole; the message says what to change."""


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
