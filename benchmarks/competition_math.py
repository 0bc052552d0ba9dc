"""AIME24, AIME25, MATH500, MATH and GSM8K: what their rows mean and how they are scored."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.benchmark import AnswerType, Benchmark, Demonstration, Step, Task
from benchmarks.catalog import EVALUATED, GSM8K_TRAIN
from benchmarks.loading import MATH_ROWS, LeftOut, RowToTask, TableLoad, Training
from benchmarks.scoring import score_math
from benchmarks.sources import DataUnavailable, Row, question_id, text_field
from benchmarks.text import last_boxed

_KEPT = ("level", "type", "subject")


def _problem(row: Row, answer_type: AnswerType) -> Task:
    """{problem | question, answer | solution}; without an answer the solution's last box is it."""
    question = text_field(row, "question", "problem")
    answer = row.get("answer")
    if answer is None or not str(answer).strip():
        answer = last_boxed(text_field(row, "solution"))
        if not answer:
            raise LeftOut("no boxed answer in the solution")
    own = row.get("id")
    kept = tuple((name, str(row[name])) for name in _KEPT if row.get(name) is not None)
    identity = question_id(question) if own is None else str(own)
    return Task(identity, question, (str(answer).strip(),), answer_type, metadata=kept)


def aime_task(row: Row, counts: Counter[str]) -> Task:
    """The answer is an integer from 0 to 999."""
    return _problem(row, "number")


def math_task(row: Row, counts: Counter[str]) -> Task:
    """The answer is LaTeX."""
    return _problem(row, "latex")


def gsm8k_task(row: Row, counts: Counter[str]) -> Task:
    """{question, answer}: the answer is a rationale that ends in `#### n`."""
    question, rationale = text_field(row, "question"), text_field(row, "answer")
    _, mark, number = rationale.rpartition("####")
    if not mark:
        raise DataUnavailable("a GSM8K answer has no ####")
    gold = number.strip().replace(",", "")
    kept = (("solution", rationale),)
    return Task(question_id(question), question, (gold,), "number", metadata=kept)


def _benchmark(name: str, to_task: RowToTask, training: Training, train_source: str) -> Benchmark:
    return Benchmark(
        name=name,
        load=TableLoad(EVALUATED[name], to_task, training),
        score=score_math,
        training_score=score_math,
        train_source=train_source,
        revision=EVALUATED[name].hub.revision[:12],
    )


_MIXTURE = "the mathematics rows of ARPO's train_10k; the last 500 are validation"


AIME24 = _benchmark("AIME24", aime_task, MATH_ROWS, _MIXTURE)


AIME25 = _benchmark("AIME25", aime_task, MATH_ROWS, _MIXTURE)


MATH500 = _benchmark("MATH500", math_task, MATH_ROWS, _MIXTURE)


MATH = _benchmark("MATH", math_task, MATH_ROWS, _MIXTURE)


def _demonstrations(data_dir: Path | None) -> Sequence[Demonstration]:
    """Scripted episodes: each worked solution in the turns of an episode."""
    return demonstrations(GSM8K.load("train", data_dir))


GSM8K = replace(
    _benchmark(
        "GSM8K",
        gsm8k_task,
        Training("gsm8k_train", GSM8K_TRAIN, gsm8k_task, validation=500),
        "GSM8K's own train split; its last 500 rows are validation",
    ),
    tools=("python",),  # nothing in these questions can be looked up
    demonstrations=_demonstrations,
)


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
