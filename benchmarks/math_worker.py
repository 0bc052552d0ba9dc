"""The program of a grading process: reads pairs of LaTeX answers, prints if they are equal.

It imports sympy once, then forks one child per pair. The kernel ends a child that uses too much
processor time or memory, so that nothing a model writes can stop the process that grades.
`benchmarks.math_pool` runs it: a JSON list [answer, gold] per line in, a letter per line out.
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
from typing import Any  # math-verify has no types

CPU_SECONDS = 0.6
"""For one pair. Processor time, so that a busy machine changes no verdict."""
WALL_SECONDS = 30.0
"""A backstop for a child that sleeps; generous, because a busy machine stretches every second."""
EXTRA_BYTES = 120 * 2**20
"""Address space that a child may add to its parent's."""
TOLERANCE = 2e-6
"""Largest relative difference of numbers that count as equal; 0.333333 is 1/3, 0.333 is not."""
DIGITS = 30
"""Precision of that comparison."""


def are_equal(answer: str, gold: str) -> bool:
    """Compare two LaTeX strings with math-verify, and numbers by their difference, too."""
    from math_verify import verify

    ours, theirs = _parse(answer), _parse(gold)
    if not ours or not theirs:
        return False
    if not verify(theirs, ours, timeout_seconds=None):
        return False
    return _numbers_agree(ours[0], theirs[0])


def _parse(text: str) -> list[Any]:
    from math_verify import LatexExtractionConfig, parse

    # Only the LaTeX grammar: the plain-expression parser of sympy evaluates Python.
    config = [LatexExtractionConfig(boxed_match_priority=0)]
    return list(parse(f"\\boxed{{{text}}}", extraction_config=config, parsing_timeout=None))


def _numbers_agree(ours: object, theirs: object) -> bool:
    """Return False for numbers that differ by more than rounding; math-verify equates tiny ones."""
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
    return size == 0 or any(abs(x - right) <= TOLERANCE * size for x in scaled)


def _set_limits() -> None:
    """Limit this child; the kernel enforces it even while C code holds the interpreter lock."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    with open("/proc/self/statm", encoding="ascii") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + EXTRA_BYTES, used + EXTRA_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def _run_child(writer: int, answer: str, gold: str) -> None:
    """Write one byte, 1 or 0, and never return."""
    verdict = b"e"
    try:
        _set_limits()
        verdict = b"1" if are_equal(answer, gold) else b"0"
    except (Exception, RecursionError, MemoryError):  # the parser may raise anything
        verdict = b"0"
    finally:
        os.write(writer, verdict)
        os._exit(0)


def grade(answer: str, gold: str) -> str:
    """Return 1 or 0; t if the child ran out of time, e if it ended without a verdict."""
    reader, writer = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _run_child(writer, answer, gold)
    os.close(writer)
    ready, _, _ = select.select([reader], [], [], WALL_SECONDS)
    verdict = os.read(reader, 1).decode() if ready else ""
    os.close(reader)
    if not verdict:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    late = time.monotonic() - start >= WALL_SECONDS
    timed_out = late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)
    return verdict or ("t" if timed_out else "e")


def main() -> None:
    """Answer requests until the input ends."""
    logging.disable(logging.CRITICAL)
    for answer, gold in (("\\frac{1}{2}", "0.5"), ("(1,2]", "1<x<2"), ("x^2+1", "1+x^2")):
        are_equal(answer, gold)  # fills the parser's tables, which children then share
    print("ready", flush=True)  # noqa: T201 - the protocol
    for line in sys.stdin:
        answer, gold = json.loads(line)
        print(grade(answer, gold), flush=True)  # noqa: T201 - the protocol


if __name__ == "__main__":
    main()
