"""Calls to the outside that may fail: paced, bounded, retried, and given up with `ToolUnavailable`.

Knows nothing of HTTP. Every process keeps its own pace: divide `per_second` among processes.
"""

import math
import queue
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple, TypeVar

from tools.per_process import PerProcess
from tools.tool import ToolUnavailable

T = TypeVar("T")
_HOSTS_KEPT = 4096
_PROBE_LOOK_S = 0.05


class Fault(Exception):
    """One attempt failed, and not because of what was asked."""

    def __init__(
        self, message: str, retry: bool = True, retry_after_s: float | None = None
    ) -> None:
        """What failed.

        Args:
            message: what failed.
            retry: False if a second attempt is pointless (a wrong password).
            retry_after_s: what the other side asked for.
        """
        super().__init__(message)
        self.retry, self.retry_after_s = retry, retry_after_s


@dataclass(frozen=True)
class Limits:
    """How calls are made and how long they are tried."""

    attempts: int = 3
    """Per call."""
    deadline_s: float = 30.0
    """All attempts of a call and the pauses between them; waiting for a turn is not counted."""
    patience_s: float = 120.0
    """Longest wait for a turn: for the pace, for a slot, or for a host that rests."""
    first_pause_s: float = 1.0
    """The pause after attempt n is drawn from 0 to this times 2 ** (n - 1)."""
    longest_pause_s: float = 30.0
    """Bound of that range."""
    per_second: float = math.inf
    """Attempts per second and host."""
    burst: int = 1
    """Attempts that may come at once after a quiet time."""
    at_once: int = 64
    """Attempts in flight, all hosts together."""
    failures: int = 8
    """Failed attempts in a row after which a host rests; then one probe decides."""
    rest_s: float = 5.0
    """First rest; each failed probe doubles it."""
    longest_rest_s: float = 600.0
    """Bound of rests."""


class Traffic(NamedTuple):
    """What one process did so far."""

    calls: int = 0
    attempts: int = 0
    faults: int = 0
    """Failed attempts."""
    unavailable: int = 0
    """Calls that were given up."""


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
    ) -> None:
        """A guard.

        Args:
            limits: for all its hosts.
            seed: draws the pauses.
            clock: seconds; tests have their own.
            sleep: likewise.
        """
        self._limits, self._clock, self._sleep = limits, clock, sleep
        self._gate = PerProcess(partial(_Gate, limits, seed))

    def call(self, host: str, ask: Callable[[float], T]) -> T:
        """What `ask` returns; it is given the seconds that are left and raises `Fault` to fail.

        Raises:
            ToolUnavailable: no attempt succeeded, or it was not our turn within `patience_s`.
        """
        gate, left = self._gate.get(), self._limits.deadline_s
        gate.count(calls=1)
        for attempt in range(1, self._limits.attempts + 1):
            with self._turn(gate, host):
                start = self._clock()
                try:
                    answer = ask(left)
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
        raise ValueError(f"attempts must be at least 1, not {self._limits.attempts}")

    def slow_down(self, host: str, gap_s: float) -> None:
        """Leave at least this long between two attempts at a host, as it asked."""
        self._gate.get().slow_down(host, gap_s)

    def traffic(self) -> Traffic:
        """Counts of this process."""
        return self._gate.get().traffic

    def _turn(self, gate: "_Gate", host: str) -> "_Slot":
        patience = self._limits.patience_s
        start = self._clock()
        while (wait := gate.wait(host, self._clock())) > 0:
            if self._clock() + wait - start > patience:
                gate.count(unavailable=1)
                raise ToolUnavailable(f"{host} rests or is too busy for {wait:.1f} s more")
            self._sleep(wait)
        slot = gate.slot(host)
        if not slot.taken(max(0.0, patience - (self._clock() - start))):
            gate.release_probe(host)
            gate.count(unavailable=1)
            raise ToolUnavailable(f"{host}: no free slot within {patience:.0f} s")
        return slot


def within(seconds: float, ask: Callable[[], T], abandon: Callable[[], object]) -> T:
    """What `ask` returns or raises, for code that cannot be trusted to keep to its own time-outs.

    It runs in a thread of its own; past `seconds` that thread is left behind after `abandon`, which
    should make it end soon.

    Raises:
        Fault: `ask` took longer.
    """
    box: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]] = queue.SimpleQueue()

    def run() -> None:
        try:
            box.put((ask(), None))
        except BaseException as error:  # handed over, whatever it is
            box.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        answer, error = box.get(timeout=max(0.0, seconds))
    except queue.Empty:
        abandon()
        raise Fault(f"no answer within {seconds:.1f} s") from None
    if error is not None:
        raise error
    return answer  # type: ignore[return-value]  # None only where T allows it


@dataclass
class _Host:
    """Mutated under the gate's lock."""

    next_s: float = -math.inf  # when the bucket is full again
    gap_s: float = 0.0
    not_before_s: float = -math.inf
    failures: int = 0
    rest_s: float = 0.0  # 0: not resting and not on probation
    probing: bool = False


@dataclass
class _Gate:
    """All hosts of one process. Mutated by every method."""

    limits: Limits
    seed: int
    traffic: Traffic = field(default_factory=Traffic)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._slots = threading.BoundedSemaphore(self.limits.at_once)
        self._random = random.Random(self.seed)

    def wait(self, host: str, now: float) -> float:
        """Seconds until the turn may come, to be asked again then; 0: it is taken."""
        with self._lock:
            state = self._state(host)
            if now < state.not_before_s:
                return state.not_before_s - now
            if state.probing:
                return _PROBE_LOOK_S
            gap = max(1 / self.limits.per_second, state.gap_s)
            burst = 1 if state.gap_s else self.limits.burst
            ahead = state.next_s - (burst - 1) * gap - now
            if ahead > 1e-9:
                return ahead
            state.next_s = max(state.next_s, now) + gap
            state.probing = state.rest_s > 0
            return 0.0

    def slow_down(self, host: str, gap_s: float) -> None:
        with self._lock:
            self._state(host).gap_s = gap_s

    def slot(self, host: str) -> "_Slot":
        return _Slot(self._slots, partial(self.release_probe, host))

    def release_probe(self, host: str) -> None:
        with self._lock:
            self._state(host).probing = False

    def failed(self, host: str, fault: Fault, now: float) -> None:
        self.count(attempts=1, faults=1)
        with self._lock:
            state = self._state(host)
            state.failures += 1
            if fault.retry_after_s is not None:
                asked = min(fault.retry_after_s, self.limits.longest_rest_s)
                state.not_before_s = max(state.not_before_s, now + asked)
            if state.probing or (state.rest_s == 0 and state.failures >= self.limits.failures):
                rest = 2 * state.rest_s if state.rest_s else self.limits.rest_s
                state.rest_s = min(rest, self.limits.longest_rest_s)
                state.not_before_s = max(state.not_before_s, now + state.rest_s)

    def succeeded(self, host: str) -> None:
        self.count(attempts=1)
        with self._lock:
            state = self._state(host)
            state.failures, state.rest_s = 0, 0.0

    def pause(self, attempt: int, fault: Fault) -> float:
        bound = min(self.limits.longest_pause_s, self.limits.first_pause_s * 2 ** (attempt - 1))
        with self._lock:
            drawn = self._random.uniform(0, bound)
        return max(drawn, fault.retry_after_s or 0.0)

    def count(self, **more: int) -> None:
        with self._lock:
            was = self.traffic._asdict()
            self.traffic = Traffic(**{name: n + more.get(name, 0) for name, n in was.items()})

    def _state(self, host: str) -> _Host:
        if host not in self._hosts and len(self._hosts) >= _HOSTS_KEPT:
            self._hosts.pop(next(iter(self._hosts)))
        return self._hosts.setdefault(host, _Host())


class _Slot(NamedTuple):
    """A place among those in flight, and the end of a probe."""

    slots: threading.BoundedSemaphore
    end_probe: Callable[[], None]

    def taken(self, patience_s: float) -> bool:
        return self.slots.acquire(timeout=patience_s)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.end_probe()
        self.slots.release()
