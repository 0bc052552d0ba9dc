"""A thread pool for tool calls that may hang: calls time out, and none blocks the process's exit.

`concurrent.futures` cannot be used: its executors, and Python at exit, wait for every call.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

from benchmarks import GraderUnavailable
from envs import Outcome, RunTool, ToolEnv, run_tool
from tools import ToolUnavailable

Result = TypeVar("Result")

ATTEMPTS = 3
"""Attempts at a step, all from the same state."""

UNAVAILABLE = (ToolUnavailable, GraderUnavailable)
"""Faults of the machinery: the turn has no outcome, and the state is the one before it."""


def step_with_retries(
    env: ToolEnv,
    text: str,
    *,
    run_tool: RunTool = run_tool,
    pause_s: float,
    timeout_s: float,
    on_retry: Callable[[], None] = lambda: None,
) -> Outcome | ToolUnavailable | GraderUnavailable:
    """Step an environment; return the outcome, or the fault that the last attempt ended in.

    Args:
        env: in the state before the turn.
        text: the turn.
        run_tool: runs the tool of a call.
        pause_s: seconds before the second attempt; doubles with every further attempt.
        timeout_s: seconds that an attempt may take; one that takes longer is not retried.
        on_retry: called before every attempt but the first.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            on_retry()
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            return call_with_timeout(timeout_s, lambda: env.step(text, run_tool=run_tool))
        except TimedOut:  # no retry: the thread left behind may still change this environment
            return ToolUnavailable(f"a step gave no answer in {timeout_s:g} s")
        except UNAVAILABLE as error:
            fault = error
    return fault


class TimedOut(Exception):
    """A call did not return in time; its thread is left behind."""


def call_with_timeout(seconds: float, call: Callable[[], Result]) -> Result:
    """Run a call in a thread of its own; return what it returns, raise what it raises.

    Raises:
        TimedOut: it took longer.
    """
    future: Future[Result] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimedOut
    return future.result()


class ToolThreads:
    """Runs calls in at most `max_threads` threads. Mutated by all its methods.

    A block that an exception leaves waits for no call: calls that have not started are dropped, the
    others are left behind. A block that ends normally joins all threads, because a thread that
    still runs while the interpreter exits may crash it.
    """

    def __init__(self, max_threads: int) -> None:
        """Start no thread yet; threads are started as calls need them."""
        self._max_threads = max_threads
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.running = 0
        """Calls that were submitted and not yet collected."""
        self.abandoned = False
        """True once an exception has left the block: results of running calls are not used."""

    def __enter__(self) -> Self:
        """Return the pool itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell idle threads to end; join them unless the block is left by an exception."""
        self.abandoned = error is not None
        if self.abandoned:
            with suppress(Empty):
                while True:
                    self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)
        if not self.abandoned:
            for thread in self._threads:
                thread.join()

    def submit(self, call: Callable[[], object]) -> None:
        """Run a call as soon as a thread is free; its return value is dropped."""
        self.running += 1
        self._calls.put(call)
        if len(self._threads) < self._max_threads:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def collect(self, *, wait: bool = False) -> None:
        """Remove calls that have ended from `running`; with `wait`, wait for one if any runs.

        Raises:
            BaseException: a call raised it.
        """
        with suppress(Empty):
            while self.running:
                error = self._ended.get(block=wait)
                wait = False
                self.running -= 1
                if error is not None:
                    raise error

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            error: BaseException | None = None
            try:
                call()
            except BaseException as raised:  # `collect` raises it in the caller's thread
                error = raised
            self._ended.put(error)
