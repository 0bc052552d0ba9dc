"""Rate limits, circuit breakers and counters for the hosts that one process calls.

Waits are returned, never slept: `tools.web.retries.Retrier` sleeps.
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

_MAX_HOSTS = 4096
"""Hosts remembered; beyond this the oldest is forgotten."""
_PROBE_POLL_S = 0.05
"""Interval of checks while another call probes the host."""


class AttemptFailed(Exception):
    """An attempt failed for a reason other than the request itself."""

    def __init__(
        self, message: str, retry: bool = True, retry_after_s: float | None = None
    ) -> None:
        """Describe a failed attempt.

        Args:
            message: what failed.
            retry: False if another attempt is pointless (a wrong password).
            retry_after_s: the pause that the host asked for.
        """
        super().__init__(message)
        self.retry, self.retry_after_s = retry, retry_after_s


@dataclass(frozen=True)
class RequestLimits:
    """Timeouts, retries, rate limits and circuit breaking of calls to hosts."""

    max_attempts: int = 3
    """Attempts of one call."""
    deadline_s: float = 30.0
    """Total time of a call: its attempts and the pauses between them, but not the wait for a turn.
    """
    attempt_timeout_s: float = 10.0
    """Timeout of one attempt."""
    max_wait_s: float = 120.0
    """Longest wait for a turn: for the rate limit, a free slot or the end of a cooldown."""
    backoff_s: float = 1.0
    """The pause after attempt n is drawn from 0 to this times 2 ** (n - 1)."""
    max_backoff_s: float = 30.0
    """Upper bound of that range."""
    per_second: float = math.inf
    """Attempts per second and host."""
    burst: int = 1
    """Attempts that may start together after a quiet time."""
    max_in_flight: int = 64
    """Concurrent attempts, all hosts together."""
    failure_threshold: int = 8
    """Consecutive failed attempts after which a host cools down; then one probe decides."""
    cooldown_s: float = 5.0
    """First cooldown; each failed probe doubles it."""
    max_cooldown_s: float = 600.0
    """Upper bound of cooldowns."""

    def __post_init__(self) -> None:
        counts = (self.max_attempts, self.max_in_flight, self.failure_threshold, self.burst)
        if min(counts) < 1:
            raise ValueError(
                "max_attempts, max_in_flight, failure_threshold and burst must be at least 1: "
                f"{self}"
            )
        if not self.per_second > 0:
            raise ValueError(f"per_second must be more than 0, not {self.per_second}")


class Traffic(NamedTuple):
    """Counters of one process."""

    calls: int = 0
    attempts: int = 0
    failures: int = 0
    """Failed attempts."""
    unavailable: int = 0
    """Calls that were given up."""


class Permit(NamedTuple):
    """The right to make one attempt, as a context; ends a probe when it is left."""

    slots: threading.BoundedSemaphore
    end_probe: Callable[[], None]

    def acquire(self, timeout_s: float) -> bool:
        """Wait for a free slot; if this returns True, the permit must be entered."""
        return self.slots.acquire(timeout=timeout_s)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None:
        self.end_probe()
        self.slots.release()


@dataclass
class _Host:
    """One host's token bucket and circuit breaker. Mutated under the rate limiter's lock."""

    full_s: float = -math.inf  # when the bucket is full again
    gap_s: float = 0.0  # minimum between two attempts, if the host asked for one
    not_before_s: float = -math.inf
    failures: int = 0  # consecutive
    cooldown_s: float = 0.0  # 0: the circuit is closed
    probing: bool = False


class RateLimiter:
    """Token buckets and circuit breakers of all hosts of one process. Mutated by every method."""

    def __init__(self, limits: RequestLimits, seed: int, pace_folder: str | Path | None) -> None:
        self.traffic = Traffic()
        self._limits, self._random = limits, random.Random(seed)
        self._lock = threading.Lock()
        self._hosts: dict[str, _Host] = {}
        self._slots = threading.BoundedSemaphore(limits.max_in_flight)
        self._folder = None if pace_folder is None else Path(pace_folder)

    def reserve(self, host: str, now: float) -> float | None:
        """Queue for the host; return the seconds until the turn, None if that is too long."""
        with self._lock:
            state = self._host(host)
            gap = max(1 / self._limits.per_second, state.gap_s)
            if gap == 0:
                return 0.0
            ahead = gap * (1 if state.gap_s else self._limits.burst) - gap
            reserve = partial(
                _reserve, now=now, gap=gap, ahead=ahead, max_wait=self._limits.max_wait_s
            )
            if self._folder is None:
                wait, state.full_s = reserve(state.full_s)
                return wait
            return _reserve_across_processes(self._folder, host, reserve)

    def admit(self, host: str, now: float) -> float:
        """Return 0 if a call may be made now, else the seconds until it is worth asking again.

        After a cooldown the first call that is admitted is a probe: `end_probe` ends it.
        """
        with self._lock:
            state = self._host(host)
            if now < state.not_before_s:
                return state.not_before_s - now
            if state.probing:
                return _PROBE_POLL_S
            state.probing = state.cooldown_s > 0
            return 0.0

    def permit(self, host: str) -> Permit:
        """Return a permit for an attempt at the host, still to be acquired."""
        return Permit(self._slots, partial(self.end_probe, host))

    def end_probe(self, host: str) -> None:
        """Let the next call in: the one that `admit` allowed is over, or was not made."""
        with self._lock:
            self._host(host).probing = False

    def slow_down(self, host: str, gap_s: float) -> None:
        """Leave this long between two attempts."""
        with self._lock:
            self._host(host).gap_s = gap_s

    def record_failure(self, host: str, failure: AttemptFailed, now: float) -> None:
        """Count a failed attempt; start a cooldown if it was a probe or one too many."""
        self.count(attempts=1, failures=1)
        with self._lock:
            state = self._host(host)
            state.failures += 1
            if failure.retry_after_s is not None:
                pause = min(failure.retry_after_s, self._limits.max_cooldown_s)
                state.not_before_s = max(state.not_before_s, now + pause)
            exceeded = state.failures >= self._limits.failure_threshold
            if state.probing or (state.cooldown_s == 0 and exceeded):
                cooldown = 2 * state.cooldown_s if state.cooldown_s else self._limits.cooldown_s
                state.cooldown_s = min(cooldown, self._limits.max_cooldown_s)
                state.not_before_s = max(state.not_before_s, now + state.cooldown_s)

    def record_success(self, host: str) -> None:
        """Count a successful attempt and close the host's circuit."""
        self.count(attempts=1)
        with self._lock:
            state = self._host(host)
            state.failures, state.cooldown_s = 0, 0.0

    def draw_backoff(self, attempt: int, failure: AttemptFailed) -> float:
        """Draw the seconds to pause after a failed attempt, numbered from 1."""
        bound = min(self._limits.max_backoff_s, self._limits.backoff_s * 2 ** (attempt - 1))
        with self._lock:
            backoff = self._random.uniform(0, bound)
        return max(backoff, failure.retry_after_s or 0.0)

    def count(
        self, calls: int = 0, attempts: int = 0, failures: int = 0, unavailable: int = 0
    ) -> None:
        """Add to the traffic."""
        with self._lock:
            old = self.traffic
            self.traffic = Traffic(
                old.calls + calls,
                old.attempts + attempts,
                old.failures + failures,
                old.unavailable + unavailable,
            )

    def _host(self, host: str) -> _Host:
        if host not in self._hosts and len(self._hosts) >= _MAX_HOSTS:
            self._hosts.pop(next(iter(self._hosts)))
        return self._hosts.setdefault(host, _Host())


class _Reservation(NamedTuple):
    wait: float | None
    full_s: float


def _reserve(full_s: float, now: float, gap: float, ahead: float, max_wait: float) -> _Reservation:
    """Take one token of the bucket that is full again at `full_s`."""
    if full_s > now + max_wait + ahead + 2 * gap:
        # No queue grows that long: the file is from before a reboot, which restarted the clock.
        full_s = -math.inf
    wait = max(0.0, full_s - ahead - now)
    if wait > max_wait:
        return _Reservation(None, full_s)
    return _Reservation(wait, max(full_s, now) + gap)


def _reserve_across_processes(
    folder: Path, host: str, reserve: Callable[[float], _Reservation]
) -> float | None:
    """Keep the bucket in a locked file that processes share; the machine's clock is theirs too."""
    folder.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(host.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    with (folder / name).open("a+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed or the process dies
        file.seek(0)
        stored = file.read()
        wait, full_s = reserve(struct.unpack("<d", stored)[0] if len(stored) == 8 else -math.inf)
        file.truncate(0)
        file.write(struct.pack("<d", full_s))
        file.flush()
    return wait
