"""Reading the public data sets: what is asked for, and what is said when it cannot be had."""

import re
import subprocess
import sys
from dataclasses import replace

import pytest

from benchmarks import BENCHMARKS, DataUnavailable
from benchmarks.catalog import DEEP_SEARCH_TRAIN, EVALUATED, GSM8K_TRAIN, REASONING_TRAIN
from benchmarks.sources import (
    HubTable,
    RowPin,
    fetch_from_hub,
    get_text,
    hub_failure_message,
    row_digest,
)

THIRTEEN = [name for name in BENCHMARKS if name != "SyntheticQA"]
COMMIT = "c0ffee" * 6 + "c0ff"
WHO = "Who founded the mill of Oldtown?"


@pytest.mark.parametrize("name", ["GAIA", "HLE"])
def test_a_gated_set_says_which_page_to_accept_and_where_the_token_goes(name):
    table = EVALUATED[name].hub
    message = hub_failure_message(table, ConnectionError("401"))
    assert f"https://huggingface.co/datasets/{table.path}" in message
    assert "HF_TOKEN" in message
    assert "--data-dir" in message
    assert "HF_TOKEN" not in hub_failure_message(EVALUATED["GSM8K"].hub, ConnectionError("x"))


def test_the_hub_is_read_at_the_pinned_revision_through_datasets(tmp_path):
    for name in THIRTEEN:
        table = EVALUATED[name].hub
        assert re.fullmatch("[0-9a-f]{40}", table.revision), name
    code = (
        "from benchmarks import BENCHMARKS, DataUnavailable\n"
        "try:\n    BENCHMARKS['GSM8K'].load('test', None)\n"
        "except DataUnavailable as error:\n    print(error)\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HOME": str(tmp_path), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert run.stdout.startswith("could not read openai/gsm8k (split test, revision cc7b047b6e5b)")
    assert fetch_from_hub is BENCHMARKS["GSM8K"].load.fetch


class HubRows(list):
    column_names = ("question", "answer", "context")

    def remove_columns(self, names):
        return [{k: v for k, v in row.items() if k not in names} for row in self]


def test_a_table_is_asked_for_at_its_revision_and_without_what_it_drops():
    asked = []

    def load_dataset(*where, **how):
        asked.append((where, how))
        return HubRows([{"question": WHO, "answer": "Ada", "context": "long"}])

    whole = HubTable("o/n", COMMIT, "test", configs=("a", "b"), drop=("context", "image"))
    assert list(fetch_from_hub(whole, load_dataset)) == [{"question": WHO, "answer": "Ada"}] * 2
    assert asked == [(("o/n", c), {"split": "test", "revision": COMMIT}) for c in "ab"]
    asked.clear()
    one = HubTable("o/n", COMMIT, "train", data_files="x/dev.jsonl")
    assert len(list(fetch_from_hub(one, load_dataset))) == 1
    file = f"hf://datasets/o/n@{COMMIT}/x/dev.jsonl"
    assert asked == [(("json",), {"data_files": file, "split": "train"})]


def test_what_is_read_is_a_commit_or_rows_that_were_seen():
    tables = [EVALUATED[name].hub for name in THIRTEEN]
    tables += [GSM8K_TRAIN, REASONING_TRAIN, DEEP_SEARCH_TRAIN]
    for table in tables:
        for place in filter(None, (table, table.fallback)):
            assert len(place.revision) == 40 or table.pin is not None, place.path


QUESTIONS = ("Who?", "When?", "Where?", "Why?")
SEEN = [{"question": question, "answer": f"A{i}"} for i, question in enumerate(QUESTIONS)]


def pinned(known=(0, 2, 3)):
    """A table of four rows of which three were seen; where its branch is read instead."""
    digests = "".join(row_digest(SEEN[i]["question"], SEEN[i]["answer"]) for i in known)
    pin = RowPin(4, digests, lambda row: (get_text(row, "question"), get_text(row, "answer")))
    branch = HubTable("o/n", "main", "test")
    return replace(branch, revision=COMMIT, pin=pin, fallback=branch)


def hub_of(**rows):
    """A hub that holds rows at revisions, `main` being at the commit NEWER; and what is asked."""
    asked = []

    def load_dataset(*where, revision, **how):
        asked.append(revision)
        if revision not in rows:
            raise FileNotFoundError(f"no revision {revision}")
        return HubRows(rows[revision])

    return asked, load_dataset


NEWER = "decade" * 6 + "deca"


def test_a_branch_is_read_at_its_commit_and_the_commit_is_said(caplog):
    asked, load_dataset = hub_of(**{NEWER: SEEN})
    table = replace(pinned(), revision="main")
    assert list(fetch_from_hub(table, load_dataset, lambda table: NEWER)) == SEEN
    assert asked == [NEWER]
    assert f"o/n is known by its rows, not by a commit: read at commit {NEWER}" in caplog.text


def test_a_branch_whose_commit_the_hub_does_not_say_is_known_by_its_rows_all_the_same(caplog):
    def commit_of(table):
        raise ConnectionError("no route")

    _, load_dataset = hub_of(main=SEEN)
    table = replace(pinned(), revision="main")
    assert list(fetch_from_hub(table, load_dataset, commit_of)) == SEEN
    assert "read at an unknown commit (ConnectionError) of its branch main" in caplog.text


def test_the_branch_is_read_where_the_pinned_copy_is_gone_or_is_another_one():
    asked, load_dataset = hub_of(**{NEWER: SEEN})
    assert list(fetch_from_hub(pinned(), load_dataset, lambda table: NEWER)) == SEEN
    assert asked == [COMMIT, NEWER]
    _, load_dataset = hub_of(**{COMMIT: [{"text": "a page"}], NEWER: SEEN})
    assert list(fetch_from_hub(pinned(), load_dataset, lambda table: NEWER)) == SEEN
    asked, load_dataset = hub_of(**{COMMIT: SEEN, NEWER: []})
    assert list(fetch_from_hub(pinned(), load_dataset, lambda table: NEWER)) == SEEN
    assert asked == [COMMIT]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (SEEN[:3], "3 rows, not 4; 1 of 3 known rows are not there"),
        ([SEEN[0], {"question": "What?", "answer": "new"}, *SEEN[2:]], ""),
        ([SEEN[0], SEEN[1], SEEN[2] | {"answer": "mended"}, SEEN[3]], "1 of 3 known rows"),
        ([SEEN[3], SEEN[1], SEEN[2], SEEN[0]], "rows in another order"),
    ],
)
def test_rows_that_are_not_those_that_were_seen_are_refused(rows, said):
    """The second row was never seen: that it changed does not show."""
    _, load_dataset = hub_of(**{NEWER: rows})
    read = fetch_from_hub(pinned(), load_dataset, lambda table: NEWER)
    if not said:
        assert list(read) == rows
        return
    with pytest.raises(DataUnavailable, match=rf"(?s)no revision.*{said}.*--data-dir"):
        list(read)


def test_a_failure_of_the_hub_is_data_unavailable():
    def load_dataset(*where, **how):
        raise ConnectionError("no route")

    with pytest.raises(DataUnavailable, match=r"cais/hle .*no route.*datasets/cais/hle.*HF_TOKEN"):
        list(fetch_from_hub(EVALUATED["HLE"].hub, load_dataset))


def test_importing_benchmarks_imports_no_heavy_library():
    code = "import sys, benchmarks; print(sorted(set(sys.modules) & set(sys.argv[1].split())))"
    heavy = "datasets torch transformers sympy math_verify pyarrow numpy huggingface_hub httpx"
    run = subprocess.run(
        [sys.executable, "-c", code, heavy], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
