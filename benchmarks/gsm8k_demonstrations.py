"""GSM8K's training solutions as tool use: every calculator annotation becomes a Python call.

"Natalia sold 48/2 = <<48/2=24>>24 clips in May." becomes the thought "Natalia sold 48/2" with the
call `48/2`; the next thought goes on with "24 clips in May. ...". The last one answers.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from benchmarks.benchmark import Demonstration, Step, Task

_ANNOTATION = re.compile(r"<<([^<>=]+)=[^<>]*>>")
_SAFE = re.compile(r"[0-9.+\-*/() ]+")


def demonstrations(data_dir: Path | None = None) -> Sequence[Demonstration]:
    """One per training row whose annotations are plain arithmetic.

    Raises:
        benchmarks.DataUnavailable: the training rows cannot be had.
    """
    from benchmarks.competition_math import GSM8K

    found = []
    for task in GSM8K.load("train", data_dir):
        steps = scripted(task, dict(task.metadata)["solution"])
        if steps:
            found.append(Demonstration(task, steps))
    return found


def scripted(task: Task, solution: str) -> tuple[Step, ...]:
    """The steps of one solution; none when an annotation is no plain arithmetic."""
    text = " ".join(solution.rpartition("####")[0].split())
    parts = _ANNOTATION.split(text)  # thought, expression, thought, expression, ..., rest
    thoughts, expressions = parts[::2], parts[1::2]
    if not expressions or not all(_SAFE.fullmatch(e) for e in expressions):
        return ()
    calls = [
        Step(thought.strip().rstrip("=$ ").strip(), "python", expression.strip())
        for thought, expression in zip(thoughts, expressions, strict=False)
    ]
    return (*calls, Step(thoughts[-1].strip(), "answer", task.answers[0]))
