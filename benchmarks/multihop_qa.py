"""HotpotQA, 2WikiMultihopQA, MuSiQue and Bamboogle: questions over several Wikipedia pages."""

from __future__ import annotations

from collections import Counter

from benchmarks.benchmark import Benchmark, Task
from benchmarks.catalog import EVALUATED
from benchmarks.loading import QA_ROWS, TableLoad
from benchmarks.scoring import score_em, score_f1
from benchmarks.sources import TableRow, get_field, get_id, get_metadata, get_text


def parse_qa(row: TableRow, counts: Counter[str]) -> Task:
    """Parse {question, answer: text or list}; on the hub with answer_aliases or golden_answers."""
    question = get_text(row, "question")
    metadata = get_metadata(row, "type", "level")
    return Task(get_id(row, question), question, accepted_answers(row), metadata=metadata)


def accepted_answers(row: TableRow) -> tuple[str, ...]:
    """Return the answer and its aliases, in order, without repeats."""
    answers: dict[str, None] = {}
    for value in (get_field(row, "answer", "golden_answers"), row.get("answer_aliases")):
        texts = value if isinstance(value, list | tuple) else [] if value is None else [value]
        answers.update(dict.fromkeys(str(text).strip() for text in texts))
    return tuple(text for text in answers if text)


def _make_benchmark(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        load=TableLoad(EVALUATED[name], parse_qa, QA_ROWS),
        score=score_em,
        training_score=score_f1,
        train_source="the question-answering rows of ARPO's train_10k; the last 500 are validation",
        revision=EVALUATED[name].hub.revision[:12],
    )


HOTPOTQA = _make_benchmark("HotpotQA")
TWO_WIKI = _make_benchmark("2WikiMultihopQA")
MUSIQUE = _make_benchmark("MuSiQue")
BAMBOOGLE = _make_benchmark("Bamboogle")
