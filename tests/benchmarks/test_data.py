"""The real rows of all thirteen sets, if they are available; this file has none of them."""

import os
import random
from pathlib import Path

import pytest

from benchmarks import BENCHMARKS
from benchmarks.catalog import DEEP_SEARCH_TRAIN, EVALUATED, REASONING_TRAIN
from benchmarks.sources import local_rows, question_key
from tests import needs
from tests.conftest import ROOT

DATA = Path(os.environ.get("APPO_DATA", ROOT.parent / "shared" / "data"))
pytestmark = needs.unless((DATA / "benchmarks").is_dir(), *needs.ROWS)
THIRTEEN = [name for name in BENCHMARKS if name != "SyntheticQA"]
SAMPLE = 150
"""Rows of a large mathematics set graded in every run; all of them in the full one."""


def sample_rows(name):
    tasks = BENCHMARKS[name].load("test", DATA)
    return tasks if len(tasks) < 1200 else random.Random(0).sample(tasks, SAMPLE)


def score_shuffled(name, tasks):
    """Scores of every question with the answer of another."""
    others = list(tasks)
    random.Random(1).shuffle(others)
    score = BENCHMARKS[name].score
    pairs = zip(tasks, others, strict=True)
    return [score(other.answers[0], task).value for task, other in pairs if other is not task]


@pytest.mark.parametrize("name", THIRTEEN)
def test_every_row_is_a_task_with_an_answer_and_a_unique_id(name, capsys):
    tasks = BENCHMARKS[name].load("test", DATA)
    counts = dict(tasks.counts)
    assert len(tasks) == counts["rows read"] > 0
    assert len({task.id for task in tasks}) == len(tasks)
    for task in tasks:
        assert task.question
        assert all(task.answers)
    with capsys.disabled():
        print(f" {name}: {len(tasks)} rows", end="")


@pytest.mark.parametrize("name", THIRTEEN)
def test_gold_against_itself_scores_one(name):
    score = BENCHMARKS[name].score
    wrong = [t.id for t in sample_rows(name) for gold in t.answers if score(gold, t).value != 1]
    assert wrong == []


@pytest.mark.parametrize("name", THIRTEEN)
def test_a_shuffled_gold_scores_next_to_nothing(name):
    tasks = sample_rows(name)[:SAMPLE]
    scores = score_shuffled(name, tasks)
    assert sum(scores) / len(scores) < 0.05


@pytest.mark.full
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["MATH500", "MATH"])
def test_all_of_mathematics_boxed_and_shuffled(name):
    tasks = BENCHMARKS[name].load("test", DATA)
    score = BENCHMARKS[name].score
    boxed = [f"The final answer is \\[ \\boxed{{{task.answers[0]}}} \\]" for task in tasks]
    wrong = [t.id for t, answer in zip(tasks, boxed, strict=True) if score(answer, t).value != 1]
    assert wrong == []
    scores = score_shuffled(name, tasks)
    assert sum(scores) / len(scores) < 0.05


@pytest.mark.parametrize("name", THIRTEEN)
def test_training_and_validation_share_no_question_with_any_evaluated_set(name):
    evaluated = {
        question_key(t.question) for n in THIRTEEN for t in BENCHMARKS[n].load("test", DATA)
    }
    train = {question_key(t.question) for t in BENCHMARKS[name].load("train", DATA)}
    validation = {question_key(t.question) for t in BENCHMARKS[name].load("validation", DATA)}
    assert len(train) > 900
    assert len(validation) >= 90
    assert train.isdisjoint(validation)
    assert (train | validation).isdisjoint(evaluated)


@pytest.mark.parametrize(
    ("table", "stem"),
    [
        (EVALUATED["WebWalker"].hub, "benchmarks/webwalker/test"),
        (REASONING_TRAIN, "train/train_10k"),
        (DEEP_SEARCH_TRAIN, "train/hard_search_1k"),
    ],
)
def test_a_pinned_table_matches_the_available_rows(table, stem):
    rows = list(local_rows(DATA, stem))
    assert table.pin.difference(rows) in ("", f"{len(rows):,} rows, not {table.pin.rows:,}")


@pytest.mark.parametrize("name", ["GAIA", "HLE", "xbench-DeepSearch"])
def test_sets_whose_owners_ask_for_it_are_restricted(name):
    assert all(task.restricted for task in BENCHMARKS[name].load("test", DATA))
