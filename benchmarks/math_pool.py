"""A pool of processes that compare mathematical answers; it parses none itself."""

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

START_TIMEOUT_S = 60.0
"""For importing sympy on a busy machine."""
ANSWER_TIMEOUT_S = 60.0
"""A backstop: a grader limits itself to well under a second of processor time."""
MAX_CACHED_VERDICTS = 20_000


class GraderUnavailable(RuntimeError):
    """The grading process cannot be started or does not answer, so there is no verdict."""


class _Grader:
    """One grading process. Used by one thread at a time."""

    def __init__(self, python: str) -> None:
        # Not multiprocessing: workers of a vector environment are daemons, which may not start such
        # children.
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.math_worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            bufsize=0,
            cwd=os.path.dirname(os.path.dirname(os.path.abspath(__file__))),
            env={"PATH": os.environ.get("PATH", ""), "PYTHONHASHSEED": "0"},
        )
        if self._read(START_TIMEOUT_S) != "ready":
            self.close()
            raise GraderUnavailable(
                "the mathematics grader did not start: run `python -m benchmarks.math_worker` to "
                "see why; it needs math-verify and latex2sympy2_extended"
            )

    def ask(self, answer: str, gold: str) -> str | None:
        """Return the grader's letter; None if it died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([answer, gold]).encode() + b"\n")
        except (BrokenPipeError, ValueError):
            return None
        return self._read(ANSWER_TIMEOUT_S) or None

    def _read(self, seconds: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], seconds)
        return self._process.stdout.readline().decode().strip() if ready else ""

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self.close_pipes()

    def close_pipes(self) -> None:
        """Close this process's ends of the pipes."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                pipe.close()


class MathPool:
    """Grading processes, started when first needed, and a cache of verdicts. Thread-safe.

    A forked child starts its own: two readers of one pipe would steal each other's verdicts.
    """

    def __init__(self, size: int = 2, python: str = sys.executable) -> None:
        self._size, self._python = size, python
        self._slots = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Grader] = []
        self._inherited: list[_Grader] = []
        self._verdicts: OrderedDict[tuple[str, str], str] = OrderedDict()
        # A hook cannot be unregistered, so it must not keep the pool alive.
        reference = weakref.ref(self)

        def reset_in_child() -> None:
            pool = reference()
            if pool is not None:
                pool._reset_after_fork()

        os.register_at_fork(after_in_child=reset_in_child)

    def _reset_after_fork(self) -> None:
        """Start afresh in a forked child.

        The parent's threads, which may hold the locks, do not run here, and its graders stay its
        own. They are kept in a list, because a `Popen` warns if it is collected while it runs.
        """
        self._slots = threading.BoundedSemaphore(self._size)
        self._lock = threading.Lock()
        self._inherited, self._idle = self._inherited + self._idle, []
        for grader in self._inherited:
            grader.close_pipes()

    def compare(self, answer: str, gold: str) -> str:
        """Return 1 if equal, 0 if not, t if time ran out, e if the comparison crashed.

        Raises:
            GraderUnavailable: no grading process could be started, or none answers.
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
            if len(self._verdicts) > MAX_CACHED_VERDICTS:
                self._verdicts.popitem(last=False)
        return letter

    def _ask(self, answer: str, gold: str) -> str:
        for _ in range(2):  # a grader may have been killed from outside while idle
            with self._lock:
                grader = self._idle.pop() if self._idle else None
            grader = grader or _Grader(self._python)
            letter = grader.ask(answer, gold)
            if letter is not None:
                with self._lock:
                    self._idle.append(grader)
                return letter
            grader.close()
        raise GraderUnavailable("two grading processes in a row ended without an answer")

    def close(self) -> None:
        """End idle processes; a busy one is kept when its call ends."""
        with self._lock:
            while self._idle:
                self._idle.pop().close()


@functools.cache
def shared_pool() -> MathPool:
    """Return the process-wide pool; scorers are plain functions, so they cannot keep one."""
    pool = MathPool()
    atexit.register(pool.close)
    return pool
