"""AIME24, AIME25, MATH500, MATH and GSM8K: parsing, scoring, and GSM8K's demonstrations."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.benchmark import AnswerType, Benchmark, Demonstration, Step, Task
from benchmarks.catalog import EVALUATED, GSM8K_TRAIN
from benchmarks.loading import MATH_ROWS, ParseRow, SkipRow, TableLoad, TrainingSource
from benchmarks.scoring import score_math
from benchmarks.sources import (
    DataUnavailable,
    TableRow,
    get_id,
    get_metadata,
    get_text,
    question_id,
)
from benchmarks.text import last_boxed

_MIXTURE = "the mathematics rows of ARPO's train_10k; the last 500 are validation"
_ANNOTATION = re.compile(r"<<([^<>=]+)=[^<>]*>>")
"""GSM8K's calculator annotation, <<20+22=42>>."""
_PLAIN_ARITHMETIC = re.compile(r"[0-9.+\-*/() ]+")


def parse_aime(row: TableRow, counts: Counter[str]) -> Task:
    """Parse a row whose answer is an integer from 0 to 999."""
    return _parse_problem(row, "number")


def parse_math(row: TableRow, counts: Counter[str]) -> Task:
    """Parse a row whose answer is LaTeX."""
    return _parse_problem(row, "latex")


def parse_gsm8k(row: TableRow, counts: Counter[str]) -> Task:
    """Parse {question, answer}; the answer is a rationale that ends in `#### n`."""
    question, rationale = get_text(row, "question"), get_text(row, "answer")
    _, mark, number = rationale.rpartition("####")
    if not mark:
        raise DataUnavailable("a GSM8K answer has no ####")
    gold = number.strip().replace(",", "")
    metadata = (("solution", rationale),)
    return Task(question_id(question), question, (gold,), "number", metadata=metadata)


def _parse_problem(row: TableRow, answer_type: AnswerType) -> Task:
    """Parse {problem | question, answer | solution}.

    Without an answer, it is the last box of the solution.
    """
    question = get_text(row, "question", "problem")
    answer = row.get("answer")
    if answer is None or not str(answer).strip():
        answer = last_boxed(get_text(row, "solution"))
        if not answer:
            raise SkipRow("no boxed answer in the solution")
    metadata = get_metadata(row, "level", "type", "subject")
    answers = (str(answer).strip(),)
    return Task(get_id(row, question), question, answers, answer_type, metadata=metadata)


def script_demonstrations(tasks: Iterable[Task]) -> Sequence[Demonstration]:
    """Script an episode for each GSM8K training task whose annotations are plain arithmetic."""
    scripts = ((task, script_solution(task, dict(task.metadata)["solution"])) for task in tasks)
    return [Demonstration(task, steps) for task, steps in scripts if steps]


def script_solution(task: Task, solution: str) -> tuple[Step, ...]:
    """Turn a worked solution into steps; none if an annotation is not plain arithmetic."""
    text = " ".join(solution.rpartition("####")[0].split())
    parts = _ANNOTATION.split(text)  # thought, expression, thought, expression, ..., rest
    thoughts, expressions = parts[::2], parts[1::2]
    if not expressions or not all(_PLAIN_ARITHMETIC.fullmatch(e) for e in expressions):
        return ()
    calls = [
        Step(thought.strip().rstrip("=$ ").strip(), "python", expression.strip())
        for thought, expression in zip(thoughts, expressions, strict=False)
    ]
    return (*calls, Step(thoughts[-1].strip(), "answer", task.answers[0]))


def _load_demonstrations(data_dir: Path | None) -> Sequence[Demonstration]:
    return script_demonstrations(GSM8K.load("train", data_dir))


def _make_benchmark(
    name: str, parse: ParseRow, training: TrainingSource, train_source: str
) -> Benchmark:
    return Benchmark(
        name=name,
        load=TableLoad(EVALUATED[name], parse, training),
        score=score_math,
        training_score=score_math,
        train_source=train_source,
        revision=EVALUATED[name].hub.revision[:12],
    )


AIME24 = _make_benchmark("AIME24", parse_aime, MATH_ROWS, _MIXTURE)
AIME25 = _make_benchmark("AIME25", parse_aime, MATH_ROWS, _MIXTURE)
MATH500 = _make_benchmark("MATH500", parse_math, MATH_ROWS, _MIXTURE)
MATH = _make_benchmark("MATH", parse_math, MATH_ROWS, _MIXTURE)
GSM8K = replace(
    _make_benchmark(
        "GSM8K",
        parse_gsm8k,
        TrainingSource("gsm8k_train", GSM8K_TRAIN, parse_gsm8k, validation=500),
        "GSM8K's own train split; its last 500 rows are validation",
    ),
    tools=("python",),  # nothing in these questions can be looked up
    demonstrations=_load_demonstrations,
)
