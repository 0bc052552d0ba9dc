"""The thirteen benchmarks: rows in both spellings become tasks, or an error says why they cannot.

These rows are made up to look like the real ones, which `benchmarks/test_data.py` reads.
"""

import base64
import json
from dataclasses import replace

import pytest

from benchmarks import BENCHMARKS, DataUnavailable, Task
from benchmarks.catalog import EVALUATED, decrypt_xbench
from benchmarks.loading import repair_latex
from benchmarks.sources import question_id, question_key

THIRTEEN = [name for name in BENCHMARKS if name != "SyntheticQA"]
CANARY = "canary-7"


def encrypt(text):
    key = CANARY.encode()
    encrypted = bytes(b ^ key[i % len(key)] for i, b in enumerate(text.encode()))
    return base64.b64encode(encrypted).decode()


SUM = "What is $20+22$?"
WHO = "Who founded the mill of Oldtown?"
ZH = "\u65e7\u9547\u7684\u78e8\u574a\u662f\u8c01\u521b\u5efa\u7684\uff1f"
SPELLINGS = {
    "AIME24": [
        ({"id": 60, "problem": SUM, "answer": "042", "question": SUM}, ("042",)),
        ({"id": 60, "problem": SUM, "solution": "s", "answer": "042", "year": "2024"}, ("042",)),
    ],
    "AIME25": [({"problem": SUM, "answer": 42, "id": "0"}, ("42",))] * 2,
    "MATH500": [
        ({"question": SUM, "answer": "42"}, ("42",)),
        ({"problem": SUM, "answer": "42", "level": 1, "unique_id": "test/a/1.json"}, ("42",)),
    ],
    "GSM8K": [
        ({"question": SUM, "answer": "20+22=<<20+22=42>>42\n#### 1,042", "idx": 3}, ("1042",)),
        ({"question": SUM, "answer": "So\n#### 1,042"}, ("1042",)),
    ],
    "MATH": [
        ({"problem": SUM, "solution": "s", "answer": "\\frac{84}{2}"}, ("\\frac{84}{2}",)),
        (
            {"problem": SUM, "solution": "so $\\boxed{\\frac{84}{2}}$.", "type": "Algebra"},
            ("\\frac{84}{2}",),
        ),
    ],
    "WebWalker": [
        ({"question": WHO, "answer": "Ada Keller."}, ("Ada Keller.",)),
        (
            {"question": WHO, "answer": "Ada Keller.", "info": {"lang": "en", "type": "single"}},
            ("Ada Keller.",),
        ),
    ],
    "HotpotQA": [
        ({"question": WHO, "answer": ["Ada Keller"]}, ("Ada Keller",)),
        ({"id": "5a8", "question": WHO, "answer": "Ada Keller", "level": "hard"}, ("Ada Keller",)),
    ],
    "2WikiMultihopQA": [
        ({"question": WHO, "answer": ["Ada Keller", "A. Keller"]}, ("Ada Keller", "A. Keller")),
        (
            {"id": "dev_0", "question": WHO, "golden_answers": ["Ada Keller", "A. Keller"]},
            ("Ada Keller", "A. Keller"),
        ),
    ],
    "MuSiQue": [
        ({"question": WHO, "answer": ["Ada Keller", "A. Keller"]}, ("Ada Keller", "A. Keller")),
        (
            {
                "id": "2hop",
                "question": WHO,
                "answer": "Ada Keller",
                "answer_aliases": ["A. Keller"],
            },
            ("Ada Keller", "A. Keller"),
        ),
    ],
    "Bamboogle": [
        ({"question": WHO, "answer": ["Ada Keller"]}, ("Ada Keller",)),
        ({"id": "test_0", "question": WHO, "golden_answers": ["Ada Keller"]}, ("Ada Keller",)),
    ],
    "GAIA": [
        ({"id": 1, "task_id": "t-1", "Question": WHO, "answer": "Ada", "Level": 1}, ("Ada",)),
        (
            {"task_id": "t-1", "Question": WHO, "Final answer": "Ada", "Level": "1"}
            | {"file_name": "", "file_path": ""},
            ("Ada",),
        ),
    ],
    "HLE": [
        (
            {"id": "h1", "question": WHO, "answer": "B", "answer_type": "multipleChoice"}
            | {"has_image": False, "canary": "c"},
            ("B",),
        ),
        (
            {"id": "h1", "question": WHO, "answer": "B", "answer_type": "multipleChoice"}
            | {"image": "", "canary": "c"},
            ("B",),
        ),
    ],
    "xbench-DeepSearch": [
        ({"question": ZH, "answer": ["\u963f\u8fbe"]}, ("\u963f\u8fbe",)),
        (
            {"id": 7, "prompt": encrypt(ZH), "answer": encrypt("\u963f\u8fbe"), "canary": CANARY},
            ("\u963f\u8fbe",),
        ),
    ],
}
"""Per benchmark, a row as ARPO's files spell it and one as the hub does, each with its answers."""


def load_from_hub(name, rows):
    """The benchmark's `load`, over a hub that has these rows and nothing else."""

    def fetch(table):
        if table is EVALUATED[name].hub:
            return rows
        raise DataUnavailable("not in this test")

    return replace(BENCHMARKS[name].load, fetch=fetch)


def write_rows(folder, stem, rows):
    path = folder / f"{stem}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


@pytest.mark.parametrize("name", THIRTEEN)
def test_both_spellings_of_a_row_become_the_same_task(name, tmp_path):
    (local_row, answers), (hub_row, hub_answers) = SPELLINGS[name]
    write_rows(tmp_path, f"benchmarks/{EVALUATED[name].folder}/test", [local_row])
    (local,) = BENCHMARKS[name].load("test", tmp_path)
    (hub,) = load_from_hub(name, [hub_row])("test", None)
    assert local.answers == answers
    assert hub.answers == hub_answers
    assert local.question == hub.question
    for field in ("answer_type", "language", "restricted", "attachments"):
        assert getattr(local, field) == getattr(hub, field)


@pytest.mark.parametrize("name", THIRTEEN)
def test_the_answer_of_a_row_is_correct_and_another_is_wrong(name):
    row, answers = SPELLINGS[name][0]
    (task,) = load_from_hub(name, [row])("test", None)
    score = BENCHMARKS[name].score
    assert score(answers[-1], task).value == 1
    assert score(f"I think it is \\boxed{{{answers[0]}}}.", task).value == 1
    assert score("\\boxed{A Wrong Person 99}", task).value == 0


def test_parquet_is_read_like_jsonl(tmp_path):
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "benchmarks" / "hotpotqa"
    folder.mkdir(parents=True)
    rows = [{"question": WHO, "answer": ["Ada Keller"]}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "test.parquet")
    (task,) = BENCHMARKS["HotpotQA"].load("test", tmp_path)
    assert task == Task(question_id(WHO), WHO, ("Ada Keller",))


@pytest.mark.parametrize("split", ["test", "train", "validation"])
def test_missing_files_are_named(tmp_path, split):
    with pytest.raises(DataUnavailable, match=r"--data-dir .*\.jsonl or .*\.parquet"):
        BENCHMARKS["MATH500"].load(split, tmp_path)


def test_a_broken_file_or_row_is_refused_with_its_position(tmp_path):
    write_rows(tmp_path, "benchmarks/gsm8k/test", [{"question": SUM, "answer": "no mark"}])
    with pytest.raises(DataUnavailable, match="####"):
        BENCHMARKS["GSM8K"].load("test", tmp_path)
    write_rows(tmp_path, "benchmarks/hotpotqa/test", [{"query": WHO}])
    with pytest.raises(DataUnavailable, match=r"none of the fields question; it has query"):
        BENCHMARKS["HotpotQA"].load("test", tmp_path)
    (tmp_path / "benchmarks/hotpotqa/test.jsonl").write_text("{oops\n", "utf-8")
    with pytest.raises(DataUnavailable, match=r"test\.jsonl, line 1 is not JSON"):
        BENCHMARKS["HotpotQA"].load("test", tmp_path)
    (tmp_path / "benchmarks/hotpotqa/test.jsonl").write_text("", "utf-8")
    with pytest.raises(DataUnavailable, match="empty"):
        BENCHMARKS["HotpotQA"].load("test", tmp_path)


def test_rows_that_cannot_be_posed_are_counted():
    rows = [
        {"id": "1", "question": WHO, "answer": "x", "image": "data:image/png;base64,AA"},
        {"id": "2", "question": WHO + "!", "answer": "x", "has_image": True},
        {"id": "3", "question": WHO + "?", "answer": "x", "image": ""},
        {"id": "3", "question": WHO + "?", "answer": "x", "image": ""},
    ]
    tasks = load_from_hub("HLE", rows)("test", None)
    assert [task.id for task in tasks] == ["3"]
    assert dict(tasks.counts) == {
        "rows read": 4,
        "left out: it needs its image": 2,
        "left out: duplicate": 1,
    }


def test_two_questions_with_one_id_are_refused():
    rows = [{"id": 1, "problem": SUM, "answer": 1}, {"id": 1, "problem": WHO, "answer": 1}]
    with pytest.raises(DataUnavailable, match="two different questions have the id 1"):
        load_from_hub("AIME25", rows)("test", None)


def test_xbench_is_decrypted_in_memory():
    row = {"prompt": encrypt(ZH), "canary": CANARY}
    assert decrypt_xbench(row, "prompt") == ZH
    assert ZH not in str(row)
    with pytest.raises(DataUnavailable, match="cannot be decrypted"):
        decrypt_xbench({"prompt": "not base64!", "canary": CANARY}, "prompt")


def test_an_attachment_is_a_path_of_an_existing_file(tmp_path):
    row = SPELLINGS["GAIA"][1][0] | {"file_path": "2023/validation/t.txt"}
    outsider = row | {"task_id": "t-2", "Question": WHO + " 2", "file_path": "../../secret.txt"}
    write_rows(tmp_path, "benchmarks/gaia/test", [row, outsider])
    (tmp_path / "secret.txt").write_text("s", "utf-8")
    tasks = BENCHMARKS["GAIA"].load("test", tmp_path)
    assert dict(tasks.counts)["left out: its attachment is not at hand"] == 2
    file = tmp_path / "benchmarks/gaia/2023/validation/t.txt"
    file.parent.mkdir(parents=True)
    file.write_text("t", "utf-8")
    (task,) = BENCHMARKS["GAIA"].load("test", tmp_path)
    assert task.attachments == (str(file.resolve()),)
    assert task.question == WHO + "\n\nThe attached file is in Python's folder: t.txt"
    load = replace(load_from_hub("GAIA", [row]), fetch_file=lambda table, name: tmp_path / name)
    assert load("test", None)[0].attachments == (str(tmp_path / "2023/validation/t.txt"),)


def test_damaged_latex_is_repaired():
    assert repair_latex("form \x0crac{m}{n}") == "form \\frac{m}{n}"
    assert (
        repair_latex("\x08oxed{1} di\x0bfference in\x0cfinite") == "\\boxed{1} difference infinite"
    )


def test_questions_are_compared_without_case_and_punctuation():
    assert question_key(" Who, founded it?") == question_key("who founded IT")
    assert question_key("who found it") != question_key("who founded it")
