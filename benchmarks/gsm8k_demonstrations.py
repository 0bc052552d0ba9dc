"""GSM8K's training solutions as tool use: every calculator annotation becomes a Python call.

"Natalia sold 48/2 = <<48/2=24>>24 clips in May." becomes the thought "Natalia sold 48/2" with the
call `48/2`; the next thought goes on with "24 clips in May. ...". The last one answers.
"""

import re
from collections.abc import Iterable, Sequence

from benchmarks.benchmark import Demonstration, Step, Task

_ANNOTATION = re.compile(r"<<([^<>=]+)=[^<>]*>>")
_SAFE = re.compile(r"[0-9.+\-*/() ]+")


def demonstrations(tasks: Iterable[Task]) -> Sequence[Demonstration]:
    """One per task of GSM8K's training split whose annotations are plain arithmetic."""
    found = []
    for task in tasks:
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
