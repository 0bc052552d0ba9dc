"""HotpotQA, 2WikiMultihopQA, MuSiQue and Bamboogle: questions over several Wikipedia pages."""

from __future__ import annotations

from collections import Counter

from benchmarks.benchmark import Benchmark, Task
from benchmarks.catalog import EVALUATED
from benchmarks.loading import QA_ROWS, TableLoad
from benchmarks.scoring import score_em, score_f1
from benchmarks.sources import Row, field, question_id, text_field


def accepted(row: Row) -> tuple[str, ...]:
    """The answer and its aliases, in order, without repeats."""
    found: dict[str, None] = {}
    for value in (field(row, "answer", "golden_answers"), row.get("answer_aliases")):
        texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
        found.update(dict.fromkeys(str(text).strip() for text in texts))
    return tuple(text for text in found if text)


def qa_task(row: Row, counts: Counter[str]) -> Task:
    """{question, answer: text or list}; on the hub also answer_aliases, or golden_answers."""
    question = text_field(row, "question")
    own = row.get("id")
    identity = question_id(question) if own is None else str(own)
    kept = tuple((name, str(row[name])) for name in ("type", "level") if row.get(name) is not None)
    return Task(identity, question, accepted(row), metadata=kept)


def _benchmark(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        load=TableLoad(EVALUATED[name], qa_task, QA_ROWS),
        score=score_em,
        training_score=score_f1,
        train_source="the question-answering rows of ARPO's train_10k; the last 500 are validation",
        revision=EVALUATED[name].hub.revision[:12],
    )


HOTPOTQA = _benchmark("HotpotQA")


TWO_WIKI = _benchmark("2WikiMultihopQA")


MUSIQUE = _benchmark("MuSiQue")


BAMBOOGLE = _benchmark("Bamboogle")
