"""GSM8K and the competition sets: what their rows mean."""

from collections import Counter

from benchmarks import catalog
from benchmarks.benchmark import Benchmark, Task
from benchmarks.loading import TableLoad, Training
from benchmarks.scoring import score_number
from benchmarks.sources import DataUnavailable, Row, question_id, text_field


def gsm8k_task(row: Row, counts: Counter[str]) -> Task:
    """{question, answer}: the answer is a rationale that ends in `#### n`."""
    question, rationale = text_field(row, "question"), text_field(row, "answer")
    _, mark, number = rationale.rpartition("####")
    if not mark:
        raise DataUnavailable("a GSM8K answer has no ####")
    gold = number.strip().replace(",", "")
    return Task(question_id(question), question, (gold,), "number")


GSM8K = Benchmark(
    name="GSM8K",
    load=TableLoad(
        catalog.GSM8K,
        gsm8k_task,
        Training("gsm8k_train", catalog.GSM8K_TRAIN, gsm8k_task, validation=500),
    ),
    score=score_number,
    training_score=score_number,
    train_source="GSM8K's own train split; its last 500 rows are validation",
    revision=catalog.GSM8K.hub.revision,
)
