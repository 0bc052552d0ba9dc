"""Calls in threads that nobody is held up by: not who gives one up, and not the process's end.

`concurrent.futures` is no help there: its executors, and Python as it exits, wait for every call.
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

Found = TypeVar("Found")


class GivenUp(Exception):
    """A call gave no answer in time; its thread is left behind."""


def within(seconds: float, call: Callable[[], Found]) -> Found:
    """What a call returns or raises; it is waited for in a thread of its own.

    Raises:
        GivenUp: it took longer.
    """
    future: Future[Found] = Future()

    def work() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise GivenUp
    return future.result()


class Threads:
    """Makes calls, so many at a time. Mutated by every call, by its end, and by `collect`.

    Who leaves the block by an exception waits for nobody: calls that have not begun are dropped,
    those that have are left behind. Who leaves it otherwise has no thread left: one that still runs
    as the process ends may bring it down with it.
    """

    def __init__(self, most: int) -> None:
        """Threads are started as they are needed, `most` of them."""
        self._most = most
        self._threads: list[threading.Thread] = []
        self._calls: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._ended: SimpleQueue[BaseException | None] = SimpleQueue()
        self.running = 0
        """Calls that were submitted and not yet collected."""
        self.abandoned = False
        """Whether the block was left by an exception: nobody wants what calls still find."""

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Let the threads end when they are free, and see them end unless an error is raised."""
        self.abandoned = error is not None
        with suppress(Empty):
            while self.abandoned:
                self._calls.get_nowait()
        for _ in self._threads:
            self._calls.put(None)
        for thread in () if self.abandoned else self._threads:
            thread.join()

    def submit(self, call: Callable[[], object]) -> None:
        """Make a call as soon as a thread is free; what it returns is dropped."""
        self.running += 1
        self._calls.put(call)
        if len(self._threads) < self._most:
            self._threads.append(threading.Thread(target=self._work, daemon=True))
            self._threads[-1].start()

    def collect(self, *, wait: bool = False) -> None:
        """Take note of calls that have ended; with `wait` one more has, if any was running.

        Raises:
            BaseException: what one of them raised.
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
            except BaseException as raised:  # handed over, whatever it is
                error = raised
            self._ended.put(error)


ATTEMPTS = 3
"""How often a step is made from the same state before it is given up."""

UNAVAILABLE = (ToolUnavailable, GraderUnavailable)
"""Faults of the machinery: nothing about the turn is known, the state is as before it."""


def step(
    env: ToolEnv,
    text: str,
    *,
    run_tool: RunTool = run_tool,
    pause_s: float,
    patience_s: float,
    again: Callable[[], None] = lambda: None,
) -> Outcome | ToolUnavailable | GraderUnavailable:
    """What the environment says to a turn, or the fault that its machinery kept to.

    Args:
        env: as before the turn.
        text: the turn.
        run_tool: runs the tool of a call.
        pause_s: seconds before the second attempt; doubles from attempt to attempt.
        patience_s: seconds for an attempt; one that hangs longer is not made again.
        again: called before every attempt but the first.
    """
    for attempt in range(ATTEMPTS):
        if attempt:
            again()
            time.sleep(pause_s * 2 ** (attempt - 1))
        try:
            return within(patience_s, lambda: env.step(text, run_tool=run_tool))
        except GivenUp:  # it may still be at work on this environment: not asked again
            return ToolUnavailable(f"a step gave no answer in {patience_s:g} s")
        except UNAVAILABLE as error:
            fault = error
    return fault
