"""Retries, rate limits and timeouts around calls that may fail; knows nothing of HTTP.

A call that cannot be made raises `ToolUnavailable`. The state of each host is in
`tools.web.rate_limits`.
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
from tools.web.rate_limits import AttemptFailed, Permit, RateLimiter, RequestLimits, Traffic

T = TypeVar("T")


class Retrier:
    """Makes calls within limits and retries them. Thread-safe; each process starts afresh.

    Mutated by `call`: the rate limiter's state and the counters.
    """

    def __init__(
        self,
        limits: RequestLimits,
        seed: int = 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        pace_folder: str | Path | None = None,
    ) -> None:
        """Prepare calls; nothing is opened yet.

        Args:
            limits: of all hosts.
            seed: draws the backoff.
            clock: seconds; a test passes its own.
            sleep: a test passes its own.
            pace_folder: processes of one machine that name the same folder share one rate limit
                per host; None: each process has its own.
        """
        self._limits, self._clock, self._sleep = limits, clock, sleep
        self._rate_limiter = PerProcess(partial(RateLimiter, limits, seed, pace_folder))

    def call(self, host: str, attempt: Callable[[float], T]) -> T:
        """Return what `attempt` returns, retrying it if it raises `AttemptFailed`.

        Args:
            host: whose rate limit and circuit breaker apply.
            attempt: makes one attempt within the seconds that it is passed.

        Raises:
            ToolUnavailable: no attempt succeeded, or there was no turn within `max_wait_s`.
        """
        limiter, left = self._rate_limiter.get(), self._limits.deadline_s
        limiter.count(calls=1)
        for number in range(1, self._limits.max_attempts + 1):
            with self._wait_for_turn(limiter, host):
                start = self._clock()
                try:
                    result = attempt(min(left, self._limits.attempt_timeout_s))
                except AttemptFailed as error:
                    failure = error
                    limiter.record_failure(host, error, self._clock())
                else:
                    limiter.record_success(host)
                    return result
            pause = limiter.draw_backoff(number, failure)
            left -= self._clock() - start + pause
            if not failure.retry or number == self._limits.max_attempts or left <= 0:
                limiter.count(unavailable=1)
                raise ToolUnavailable(f"{host}: {failure} (attempt {number})") from failure
            self._sleep(pause)
        raise AssertionError("RequestLimits allow at least one attempt")

    def slow_down(self, host: str, gap_s: float) -> None:
        """Leave at least this long between two attempts at a host that asked for it."""
        self._rate_limiter.get().slow_down(host, gap_s)

    def traffic(self) -> Traffic:
        """Return the counters of this process."""
        return self._rate_limiter.get().traffic

    def _wait_for_turn(self, limiter: RateLimiter, host: str) -> Permit:
        """Wait for the rate limit, then the circuit breaker, then a slot, within `max_wait_s`."""
        max_wait, start = self._limits.max_wait_s, self._clock()
        wait = limiter.reserve(host, start)
        if wait is not None:
            if wait > 0:
                self._sleep(wait)
            while (wait := limiter.admit(host, self._clock())) > 0:
                if self._clock() + wait - start > max_wait:
                    break
                self._sleep(wait)
        if wait is None or wait > 0:
            limiter.count(unavailable=1)
            raise ToolUnavailable(
                f"{host} is cooling down or too busy: no turn within {max_wait:.0f} s"
            )
        permit = limiter.permit(host)
        if not permit.acquire(max(0.0, max_wait - (self._clock() - start))):
            limiter.end_probe(host)
            limiter.count(unavailable=1)
            raise ToolUnavailable(f"{host}: no free slot within {max_wait:.0f} s")
        return permit


class WorkerThread:
    """A thread that runs one task after the other, each with a timeout. Mutated by every task.

    It serves one user at a time. After a task that timed out it ends together with that task.
    """

    def __init__(self) -> None:
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def run(self, seconds: float, task: Callable[[], T], abandon: Callable[[], object]) -> T:
        """Return or raise what `task` does; after `seconds`, leave it behind.

        Args:
            seconds: timeout of `task`.
            task: code whose own timeouts cannot be trusted.
            abandon: should make `task` end soon.

        Raises:
            AttemptFailed: `task` took longer.
        """
        outcome: queue.SimpleQueue[tuple[T, None] | tuple[None, BaseException]]
        outcome = queue.SimpleQueue()

        def run_task() -> None:
            try:
                outcome.put((task(), None))
            except BaseException as error:  # of any kind: it belongs to the caller's thread
                outcome.put((None, error))

        self._tasks.put(run_task)
        try:
            result, error = outcome.get(timeout=max(0.0, seconds))
        except queue.Empty:
            self.stop()
            abandon()
            raise AttemptFailed(f"no answer within {seconds:.1f} s") from None
        if error is not None:
            raise error
        return result  # type: ignore[return-value]  # None only if T allows it

    def stop(self) -> None:
        """End the thread once it is idle."""
        self._tasks.put(None)

    def _work(self) -> None:
        while (run_task := self._tasks.get()) is not None:
            run_task()


def call_with_timeout(seconds: float, task: Callable[[], T], abandon: Callable[[], object]) -> T:
    """Run one task in a new thread; see `WorkerThread.run`."""
    worker = WorkerThread()
    try:
        return worker.run(seconds, task, abandon)
    finally:
        worker.stop()
