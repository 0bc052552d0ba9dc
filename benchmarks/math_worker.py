"""The program of a grading process: reads pairs of LaTeX answers, says whether they are equal.

It imports the mathematics once, then forks one child per pair. The kernel ends a child that uses
too much processor time or memory, so that nothing a model writes can stop the process that grades.
Run by `benchmarks.math_pool`; one JSON object per line in, one per line out.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import select
import signal
import sys
import time
from typing import Any  # what math-verify returns has no types

CPU_SECONDS = 0.6
"""Of one pair. By processor time, so that a busy machine changes no verdict."""


WALL_SECONDS = 30.0
"""Backstop for a child that sleeps; wide, because a crowded machine stretches every second."""


EXTRA_BYTES = 120 * 2**20
"""Address space that a child may add to what it was forked with."""

CLOSE = 2e-6
"""Largest relative difference of two numbers that count as one; 0.333333 is 1/3, 0.333 is not."""


DIGITS = 30
"""Precision of that comparison."""


def equal(answer: str, gold: str) -> bool:
    """math-verify's verdict on two LaTeX strings; for numbers a second look at the difference."""
    from math_verify import verify

    ours, theirs = _parsed(answer), _parsed(gold)
    if not ours or not theirs:
        return False
    if not verify(theirs, ours, timeout_seconds=None):
        return False
    return _numbers_agree(ours[0], theirs[0])


def _parsed(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Only the LaTeX grammar: the plain-expression parser of sympy evaluates Python.
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return list(parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None))


def _numbers_agree(ours: object, theirs: object) -> bool:
    """False for numbers that differ by more than rounding: math-verify calls tiny ones equal."""
    import sympy

    if not (isinstance(ours, sympy.Expr) and isinstance(theirs, sympy.Expr)):
        return True
    if not (ours.is_number and theirs.is_number):
        return True
    left, right = sympy.N(ours, DIGITS), sympy.N(theirs, DIGITS)
    if not (left.is_comparable and right.is_comparable) or not (left.is_finite and right.is_finite):
        return True
    size = max(abs(left), abs(right))
    scaled = (left, left * 100, left / 100)  # math-verify reads 50% as 50 and as 0.5; so do we
    return size == 0 or any(abs(x - right) <= CLOSE * size for x in scaled)


def _limits() -> None:
    """Limits of a child; the kernel keeps them even while C code holds the interpreter lock."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _child(writer: int, answer: str, gold: str) -> None:
    """Writes one byte, 1 or 0, and never returns."""
    verdict = b"e"
    try:
        _limits()
        verdict = b"1" if equal(answer, gold) else b"0"
    except (Exception, RecursionError, MemoryError):  # the parser raises what it likes
        verdict = b"0"
    finally:
        os.write(writer, verdict)
        os._exit(0)


def grade(answer: str, gold: str) -> str:
    """1 or 0; t where the child ran out of time, e where it ended without a verdict."""
    reader, writer = os.pipe()
    started = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _child(writer, answer, gold)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], WALL_SECONDS)
    verdict = os.read(reader, 1).decode() if ready else ""
    os.close(reader)
    if not verdict:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    late = time.monotonic() - started >= WALL_SECONDS
    timed_out = late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
    return verdict or ("t" if timed_out else "e")


def main() -> None:
    """Answers requests until the other side closes."""
    logging.disable(logging.CRITICAL)
    for answer, gold in (("\\frac{1}{2}", "0.5"), ("(1,2]", "1<x<2"), ("x^2+1", "1+x^2")):
        equal(answer, gold)  # warms the parser's tables, which children then share
    print("ready", flush=True)  # noqa: T201 - the protocol
    for line in sys.stdin:
        answer, gold = json.loads(line)
        print(grade(answer, gold), flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main()
