"""The sources of training rows: no evaluated question is among them, none of validation."""

import json
from dataclasses import replace

import pytest

from benchmarks import BENCHMARKS, DataUnavailable
from benchmarks.sources import question_id


def make_row(index, question, gold, ability):
    return {
        "data_source": "mix",
        "ability": ability,
        "prompt": [{"role": "system", "content": "put it in \x08oxed{}"}],
        "reward_model": {"ground_truth": gold, "style": "rule"},
        "extra_info": {"index": index, "question": question},
    }


def write_data(tmp_path, training, evaluated=()):
    (tmp_path / "train").mkdir()
    for stem, rows in training.items():
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "train" / f"{stem}.jsonl").write_text(lines, "utf-8")
    folder = tmp_path / "benchmarks" / "math"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps({"problem": q, "answer": "1"}) + "\n" for q in evaluated)
    (folder / "test.jsonl").write_text(lines, "utf-8")
    return tmp_path


def load_with(name, validation):
    load = BENCHMARKS[name].load
    return replace(load, training=replace(load.training, validation=validation))


def test_the_mixture_is_split_by_ability_and_its_prompt_is_ignored(tmp_path):
    rows = [
        make_row(0, "Sum of \x0crac{1}{2}?", "0.5", "math"),
        make_row(1, "Who?", "Ada", "qa"),
        make_row(2, "Product?", "6", "math"),
        make_row(3, "Where?", "Oldtown", "qa"),
    ]
    data = write_data(tmp_path, {"train_10k": rows}, ["Unrelated?"])
    train = load_with("AIME24", 1)("train", data)
    assert [task.question for task in train] == ["Sum of \\frac{1}{2}?"]
    assert dict(train.counts)["control characters repaired"] == 1
    assert dict(train.counts)["left out: not math"] == 2
    (task,) = load_with("MuSiQue", 1)("train", data)
    assert (task.question, task.answers, task.answer_type) == ("Who?", ("Ada",), "span")
    assert "oxed" not in str(task)


def test_evaluated_questions_and_validation_are_kept_out_of_training(tmp_path):
    """Six rows: a is evaluated, the second "b?" is a duplicate, E! spells the held-out e."""
    questions = ["a?", "b?", "B", "b?", "E!", "e?"]
    rows = [make_row(i, q, "x", None) for i, q in enumerate(questions)]
    data = write_data(tmp_path, {"hard_search_1k": rows}, ["A"])
    train = load_with("GAIA", 1)("train", data)
    assert [task.question for task in train] == ["b?", "B"]
    counts = dict(train.counts)
    assert counts["left out: duplicate"] == 1
    assert counts["overlap with an evaluated set, removed"] == 1
    assert counts["overlap with validation, removed"] == 1
    assert [task.question for task in load_with("GAIA", 1)("validation", data)] == ["e?"]


def test_sets_that_could_not_be_compared_are_counted(tmp_path):
    rows = [make_row(i, f"{i}?", "x", None) for i in range(3)]
    data = write_data(tmp_path, {"hard_search_1k": rows}, ["A"])
    counts = dict(load_with("HLE", 1)("train", data).counts)
    assert counts["HLE not at hand, overlap not checked"] == 1
    assert "MATH not at hand, overlap not checked" not in counts


def test_gsm8k_trains_on_its_own_split(tmp_path):
    rows = [{"question": f"{i}?", "answer": f"so\n#### {i}"} for i in range(5)]
    data = write_data(tmp_path, {"gsm8k_train": rows}, ["A"])
    assert [t.answers for t in load_with("GSM8K", 2)("train", data)] == [("0",), ("1",), ("2",)]
    assert [t.id for t in load_with("GSM8K", 2)("validation", data)] == [
        question_id("3?"),
        question_id("4?"),
    ]
    with pytest.raises(DataUnavailable, match="kept for validation"):
        load_with("GSM8K", 5)("train", data)


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected train, validation or test"):
        BENCHMARKS["GSM8K"].load("dev", tmp_path)


def test_every_benchmark_names_its_training_source():
    for name, benchmark in BENCHMARKS.items():
        assert benchmark.train_source, name
        assert "test" not in benchmark.train_source.lower().split(), name
