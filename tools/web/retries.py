"""Calls to the outside that may fail: paced, bounded, retried, and given up with `ToolUnavailable`.

Knows nothing of HTTP. What is kept of each host is in `tools.web.rate_limits`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TypeVar

from tools.per_process import PerProcess
from tools.tool import ToolUnavailable
from tools.web.rate_limits import Fault, Gate, Limits, Slot, Traffic

T = TypeVar("T")


class Guard:
    """Makes calls within limits. Thread-safe; each process starts with a clean slate.

    Mutated by `call`: the pace, the failures and the rest of every host, and the counts.
    """

    def __init__(
        self,
        limits: Limits,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        pace_folder: str | Path | None = None,
    ) -> None:
        """A guard.

        Args:
            limits: for all its hosts.
            seed: draws the pauses.
            clock: seconds; tests have their own.
            sleep: likewise.
            pace_folder: processes of one machine that name the same folder keep one pace together;
                None: each keeps its own.
        """
        self._limits, self._clock, self._sleep = limits, clock, sleep
        self._gate = PerProcess(partial(Gate, limits, seed, pace_folder))

    def call(self, host: str, ask: Callable[[float], T]) -> T:
        """What `ask` returns; it is given its seconds and raises `Fault` to fail.

        Raises:
            ToolUnavailable: no attempt succeeded, or it was not our turn within `patience_s`.
        """
        gate, left = self._gate.get(), self._limits.deadline_s
        gate.count(calls=1)
        for attempt in range(1, self._limits.attempts + 1):
            with self._turn(gate, host):
                start = self._clock()
                try:
                    answer = ask(min(left, self._limits.attempt_s))
                except Fault as fault:
                    failed = fault
                    gate.failed(host, fault, self._clock())
                else:
                    gate.succeeded(host)
                    return answer
            pause = gate.pause(attempt, failed)
            left -= self._clock() - start + pause
            if not failed.retry or attempt == self._limits.attempts or left <= 0:
                gate.count(unavailable=1)
                raise ToolUnavailable(f"{host}: {failed} (attempt {attempt})") from failed
            self._sleep(pause)
        raise AssertionError("Limits allow at least one attempt")

    def slow_down(self, host: str, gap_s: float) -> None:
        """Leave at least this long between two attempts at a host, as it asked."""
        self._gate.get().slow_down(host, gap_s)

    def traffic(self) -> Traffic:
        """Counts of this process."""
        return self._gate.get().traffic

    def _turn(self, gate: Gate, host: str) -> Slot:
        patience, start = self._limits.patience_s, self._clock()
        wait = gate.reserve(host, start)
        if wait is not None:
            if wait > 0:
                self._sleep(wait)
            while (wait := gate.enter(host, self._clock())) > 0:
                if self._clock() + wait - start > patience:
                    break
                self._sleep(wait)
        if wait is None or wait > 0:
            gate.count(unavailable=1)
            raise ToolUnavailable(f"{host} rests or is too busy for {patience:.0f} s and more")
        slot = gate.slot(host)
        if not slot.taken(max(0.0, patience - (self._clock() - start))):
            gate.leave_probe(host)
            gate.count(unavailable=1)
            raise ToolUnavailable(f"{host}: no free slot within {patience:.0f} s")
        return slot


class Worker:
    """A thread that runs one call after the other, each within a time. Mutated by every call.

    It is for one user at a time. After a call that took too long it ends with that call.
    """

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def within(self, seconds: float, ask: Callable[[], T], abandon: Callable[[], object]) -> T:
        """What `ask` returns or raises; past `seconds` it is left behind.

        Args:
            seconds: for `ask`.
            ask: code that cannot be trusted to keep to its own time-outs.
            abandon: should make `ask` end soon.

        Raises:
            Fault: `ask` took longer.
        """
        box: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

        def run() -> None:
            try:
                box.put((ask(), None))
            except BaseException as error:  # handed over, whatever it is
                box.put((None, error))

        self._jobs.put(run)
        try:
            answer, error = box.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self.stop()
            abandon()
            raise Fault(f"no answer within {seconds:.1f} s") from None
        if error is not None:
            raise error
        return answer  # type: ignore[return-value]  # None only where T allows it

    def stop(self) -> None:
        """End the thread when it is free."""
        self._jobs.put(None)

    def _work(self) -> None:
        while (run := self._jobs.get()) is not None:
            run()


def within(seconds: float, ask: Callable[[], T], abandon: Callable[[], object]) -> T:
    """`Worker.within` by a worker of its own."""
    worker = Worker()
    try:
        return worker.within(seconds, ask, abandon)
    finally:
        worker.stop()
