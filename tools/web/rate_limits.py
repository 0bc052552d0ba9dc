"""What one process knows of the hosts it calls: their pace, their failures, their rest.

Waits are returned, never slept: `tools.web.retries.Guard` does that.
"""

from __future__ import annotations

import fcntl
import hashlib
import math
import random
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

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
    attempt_s: float = 10.0
    """One attempt."""
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

    def __post_init__(self) -> None:
        if self.attempts < 1 or self.at_once < 1 or self.failures < 1 or self.burst < 1:
            raise ValueError(f"attempts, at_once, failures and burst must be at least 1: {self}")
        if not self.per_second > 0:
            raise ValueError(f"per_second must be more than 0, not {self.per_second}")


class Traffic(NamedTuple):
    """What one process did so far."""

    calls: int = 0
    attempts: int = 0
    faults: int = 0
    """Failed attempts."""
    unavailable: int = 0
    """Calls that were given up."""


class Slot(NamedTuple):
    """A place among the calls in flight, and the end of a probe."""

    slots: threading.BoundedSemaphore
    end_probe: Callable[[], None]

    def taken(self, patience_s: float) -> bool:
        """Whether a place became free in time; then the slot must be entered as a context."""
        return self.slots.acquire(timeout=patience_s)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.end_probe()
        self.slots.release()


@dataclass
class _Host:
    """Mutated under the gate's lock."""

    full_s: float = -math.inf  # when the bucket is full again
    gap_s: float = 0.0
    not_before_s: float = -math.inf
    failures: int = 0
    rest_s: float = 0.0  # 0: not resting and not on probation
    probing: bool = False


class Gate:
    """All hosts of one process. Mutated by every method."""

    def __init__(self, limits: Limits, seed: int, pace_folder: str | Path | None) -> None:
        self.traffic = Traffic()
        self._limits, self._random = limits, random.Random(seed)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._slots = threading.BoundedSemaphore(limits.at_once)
        self._folder = None if pace_folder is None else Path(pace_folder)

    def reserve(self, host: str, now: float) -> float | None:
        """Take the next place in the host's queue: seconds until then; None: too many wait."""
        with self._lock:
            state = self._state(host)
            gap = max(1 / self._limits.per_second, state.gap_s)
            if gap == 0:
                return 0.0
            start = gap * (1 if state.gap_s else self._limits.burst) - gap
            queue = partial(_reserved, now=now, gap=gap, ahead=start, most=self._limits.patience_s)
            if self._folder is None:
                wait, state.full_s = queue(state.full_s)
                return wait
            return _reserved_by_all(self._folder, host, queue)

    def enter(self, host: str, now: float) -> float:
        """Zero if a call may be made now, and then a host that rested is on probation."""
        with self._lock:
            state = self._state(host)
            if now < state.not_before_s:
                return state.not_before_s - now
            if state.probing:
                return _PROBE_LOOK_S
            state.probing = state.rest_s > 0
            return 0.0

    def slot(self, host: str) -> Slot:
        """A place to wait for."""
        return Slot(self._slots, partial(self.leave_probe, host))

    def leave_probe(self, host: str) -> None:
        """The call that `enter` allowed is over, or was not made."""
        with self._lock:
            self._state(host).probing = False

    def slow_down(self, host: str, gap_s: float) -> None:
        """Leave this long between two attempts."""
        with self._lock:
            self._state(host).gap_s = gap_s

    def failed(self, host: str, fault: Fault, now: float) -> None:
        """An attempt failed: rest, if it was one too many or a probe."""
        self.count(attempts=1, faults=1)
        with self._lock:
            state = self._state(host)
            state.failures += 1
            if fault.retry_after_s is not None:
                asked = min(fault.retry_after_s, self._limits.longest_rest_s)
                state.not_before_s = max(state.not_before_s, now + asked)
            if state.probing or (state.rest_s == 0 and state.failures >= self._limits.failures):
                rest = 2 * state.rest_s if state.rest_s else self._limits.rest_s
                state.rest_s = min(rest, self._limits.longest_rest_s)
                state.not_before_s = max(state.not_before_s, now + state.rest_s)

    def succeeded(self, host: str) -> None:
        """An attempt succeeded: forget what was before."""
        self.count(attempts=1)
        with self._lock:
            state = self._state(host)
            state.failures, state.rest_s = 0, 0.0

    def pause(self, attempt: int, fault: Fault) -> float:
        """Seconds before the attempt after this one."""
        bound = min(self._limits.longest_pause_s, self._limits.first_pause_s * 2 ** (attempt - 1))
        with self._lock:
            drawn = self._random.uniform(0, bound)
        return max(drawn, fault.retry_after_s or 0.0)

    def count(
        self, calls: int = 0, attempts: int = 0, faults: int = 0, unavailable: int = 0
    ) -> None:
        """Add to the traffic."""
        with self._lock:
            was = self.traffic
            self.traffic = Traffic(
                was.calls + calls,
                was.attempts + attempts,
                was.faults + faults,
                was.unavailable + unavailable,
            )

    def _state(self, host: str) -> _Host:
        if host not in self._hosts and len(self._hosts) >= _HOSTS_KEPT:
            self._hosts.pop(next(iter(self._hosts)))
        return self._hosts.setdefault(host, _Host())


class _Reserved(NamedTuple):
    wait: float | None
    full_s: float


def _reserved(full_s: float, now: float, gap: float, ahead: float, most: float) -> _Reserved:
    """One more place behind those that fill the bucket until `full_s`."""
    if full_s > now + most + ahead + 2 * gap:
        full_s = -math.inf  # nobody waits that long: the clock began anew with the machine
    wait = max(0.0, full_s - ahead - now)
    return _Reserved(None, full_s) if wait > most else _Reserved(wait, max(full_s, now) + gap)


def _reserved_by_all(folder: Path, host: str, queue: Callable[[float], _Reserved]) -> float | None:
    """The same, for all processes that share the folder; their clock is the machine's."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(host.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    with (folder / name).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # given up with the file, or the process
        file.seek(0)
        kept = file.read()
        wait, full_s = queue(struct.unpack("<d", kept)[0] if len(kept) == 8 else -math.inf)
        file.truncate(0)
        file.write(struct.pack("<d", full_s))
        file.flush()
    return wait
