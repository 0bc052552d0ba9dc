"""Processes that compare mathematics, and the calls into them. Nothing here parses an answer."""

from __future__ import annotations

import atexit
import functools
import json
import os
import select
import subprocess
import sys
import threading
import weakref
from collections import OrderedDict

START_SECONDS = 60.0
"""For importing the mathematics on a busy machine."""


ANSWER_SECONDS = 60.0
"""Backstop; the worker itself answers in well under a second of processor time."""


CACHED_VERDICTS = 20_000


class GraderUnavailable(RuntimeError):
    """The grading process cannot be started or does not answer; no verdict was made up."""


class _Worker:
    """One grading process. Used by one thread at a time."""

    def __init__(self, python: str) -> None:
        # subprocess, not multiprocessing: workers of a vector environment are daemons.
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0"},
        )
        if self._read(START_SECONDS) != "ready":
            self.close()
            raise GraderUnavailable(
                "the mathematics grader did not start: run `python -m benchmarks.math_worker` to "
                "see why; it needs math-verify and latex2sympy2_extended"
            )

    def ask(self, answer: str, gold: str) -> str | None:
        """The worker's letter; None where it is gone."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
        except (BrokenPipeError, ValueError):
            return None
        return self._read(ANSWER_SECONDS) or None

    def _read(self, seconds: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline().decode().strip() if ready else ""

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.wait()
        self.let_go()

    def let_go(self) -> None:
        """Closes this process's ends of the pipes; the grader belongs to another process."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class MathPool:
    """Grading processes, started when first needed, and a cache of verdicts. Thread-safe.

    A forked copy of this process starts its own: a pipe has one reader.
    """

    def __init__(self, size: int = 2, python: str = sys.executable) -> None:
        self._size, self._python = size, python
        self._slots = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._inherited: list[_Worker] = []
        self._verdicts: OrderedDict[tuple[str, str], str] = OrderedDict()
        this = weakref.ref(self)

        def forked() -> None:
            pool = this()
            if pool is not None:
                pool._forked()

        os.register_at_fork(after_in_child=forked)

    def _forked(self) -> None:
        """In a forked copy: no thread of the parent runs here, and its graders are not ours."""
        self._slots = threading.BoundedSemaphore(self._size)
        self._lock = threading.Lock()
        self._inherited, self._idle = self._inherited + self._idle, []
        for worker in self._inherited:
            worker.let_go()

    def verdict(self, answer: str, gold: str) -> str:
        """1 equal, 0 not, t out of time, e the child ended without a verdict.

        Raises:
            GraderUnavailable: no process could be had.
        """
        key = (answer, gold)
        with self._lock:
            if key in self._verdicts:
                self._verdicts.move_to_end(key)
                return self._verdicts[key]
        with self._slots:
            letter = self._ask(answer, gold)
        with self._lock:
            self._verdicts[key] = letter
            if len(self._verdicts) > CACHED_VERDICTS:
                self._verdicts.popitem(last=False)
        return letter

    def _ask(self, answer: str, gold: str) -> str:
        for _ in range(2):  # a worker may have been killed from outside while idle
            with self._lock:
                worker = self._idle.pop() if self._idle else None
            worker = worker or _Worker(self._python)
            letter = worker.ask(answer, gold)
            if letter is not None:
                with self._lock:
                    self._idle.append(worker)
                return letter
            worker.close()
        raise GraderUnavailable("two grading processes in a row ended without an answer")

    def close(self) -> None:
        """Ends idle processes; those at work end with their call."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()


@functools.cache
def shared_pool() -> MathPool:
    """The process-wide pool: scorers are plain functions and have nowhere else to keep one."""
    pool = MathPool()
    atexit.register(pool.close)
    return pool
