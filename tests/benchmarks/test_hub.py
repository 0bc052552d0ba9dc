"""Reading the public data sets: the requests, and the errors if rows are unavailable."""

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
NEWER = "decade" * 6 + "deca"
"""The current commit of the branch `main`."""
WHO = "Who founded the mill of Oldtown?"


@pytest.mark.parametrize("name", ["GAIA", "HLE"])
def test_a_gated_set_names_the_page_to_accept_and_the_variable_of_the_token(name):
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
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={"HF_HOME": str(tmp_path), "PATH": "", "HF_HUB_OFFLINE": "1"},
    )
    assert result.stdout.startswith(
        "could not read openai/gsm8k (split test, revision cc7b047b6e5b)"
    )
    assert fetch_from_hub is BENCHMARKS["GSM8K"].load.fetch


class HubRows(list):
    column_names = ("question", "answer", "context")

    def remove_columns(self, names):
        return [{k: v for k, v in row.items() if k not in names} for row in self]


def test_a_table_is_requested_at_its_revision_and_read_without_dropped_columns():
    requests = []

    def load_dataset(*args, **kwargs):
        requests.append((args, kwargs))
        return HubRows([{"question": WHO, "answer": "Ada", "context": "long"}])

    configs = HubTable("o/n", COMMIT, "test", configs=("a", "b"), drop=("context", "image"))
    assert list(fetch_from_hub(configs, load_dataset)) == [{"question": WHO, "answer": "Ada"}] * 2
    assert requests == [(("o/n", c), {"split": "test", "revision": COMMIT}) for c in "ab"]
    requests.clear()
    file_only = HubTable("o/n", COMMIT, "train", data_files="x/dev.jsonl")
    assert len(list(fetch_from_hub(file_only, load_dataset))) == 1
    file = f"hf://datasets/o/n@{COMMIT}/x/dev.jsonl"
    assert requests == [(("json",), {"data_files": file, "split": "train"})]


def test_every_table_is_read_at_a_commit_or_has_a_pin():
    tables = [EVALUATED[name].hub for name in THIRTEEN]
    tables += [GSM8K_TRAIN, REASONING_TRAIN, DEEP_SEARCH_TRAIN]
    for table in tables:
        for candidate in filter(None, (table, table.fallback)):
            assert len(candidate.revision) == 40 or table.pin is not None, candidate.path


QUESTIONS = ("Who?", "When?", "Where?", "Why?")
PINNED_ROWS = [{"question": question, "answer": f"A{i}"} for i, question in enumerate(QUESTIONS)]


def pin_table(pinned=(0, 2, 3)):
    """A table of four rows with a pin of three; its branch is the fallback."""
    digests = "".join(
        row_digest(PINNED_ROWS[i]["question"], PINNED_ROWS[i]["answer"]) for i in pinned
    )
    pin = RowPin(4, digests, lambda row: (get_text(row, "question"), get_text(row, "answer")))
    branch = HubTable("o/n", "main", "test")
    return replace(branch, revision=COMMIT, pin=pin, fallback=branch)


def make_hub(**rows):
    """A list of requested revisions, and `load_dataset` over a hub with these rows by revision."""
    revisions = []

    def load_dataset(*args, revision, **kwargs):
        revisions.append(revision)
        if revision not in rows:
            raise FileNotFoundError(f"no revision {revision}")
        return HubRows(rows[revision])

    return revisions, load_dataset


def test_a_branch_is_read_at_its_commit_which_is_logged(caplog):
    revisions, load_dataset = make_hub(**{NEWER: PINNED_ROWS})
    table = replace(pin_table(), revision="main")
    assert list(fetch_from_hub(table, load_dataset, lambda table: NEWER)) == PINNED_ROWS
    assert revisions == [NEWER]
    assert f"o/n is known by its rows, not by a commit: read at commit {NEWER}" in caplog.text


def test_a_branch_whose_commit_the_hub_does_not_tell_is_read_and_checked_too(caplog):
    def commit_of(table):
        raise ConnectionError("no route")

    _, load_dataset = make_hub(main=PINNED_ROWS)
    table = replace(pin_table(), revision="main")
    assert list(fetch_from_hub(table, load_dataset, commit_of)) == PINNED_ROWS
    assert "read at an unknown commit (ConnectionError) of its branch main" in caplog.text


def test_the_branch_is_read_if_the_pinned_copy_is_gone_or_has_other_rows():
    revisions, load_dataset = make_hub(**{NEWER: PINNED_ROWS})
    assert list(fetch_from_hub(pin_table(), load_dataset, lambda table: NEWER)) == PINNED_ROWS
    assert revisions == [COMMIT, NEWER]
    _, load_dataset = make_hub(**{COMMIT: [{"text": "a page"}], NEWER: PINNED_ROWS})
    assert list(fetch_from_hub(pin_table(), load_dataset, lambda table: NEWER)) == PINNED_ROWS
    revisions, load_dataset = make_hub(**{COMMIT: PINNED_ROWS, NEWER: []})
    assert list(fetch_from_hub(pin_table(), load_dataset, lambda table: NEWER)) == PINNED_ROWS
    assert revisions == [COMMIT]


@pytest.mark.parametrize(
    ("rows", "difference"),
    [
        (PINNED_ROWS[:3], "3 rows, not 4; 1 of 3 known rows are not there"),
        ([PINNED_ROWS[0], {"question": "What?", "answer": "new"}, *PINNED_ROWS[2:]], ""),
        (
            [PINNED_ROWS[0], PINNED_ROWS[1], PINNED_ROWS[2] | {"answer": "mended"}, PINNED_ROWS[3]],
            "1 of 3 known rows",
        ),
        ([PINNED_ROWS[3], PINNED_ROWS[1], PINNED_ROWS[2], PINNED_ROWS[0]], "rows in another order"),
    ],
)
def test_rows_that_do_not_match_the_pin_are_refused(rows, difference):
    """The second row is not pinned, so that a change in it does not show."""
    _, load_dataset = make_hub(**{NEWER: rows})
    fetched = fetch_from_hub(pin_table(), load_dataset, lambda table: NEWER)
    if not difference:
        assert list(fetched) == rows
        return
    with pytest.raises(DataUnavailable, match=rf"(?s)no revision.*{difference}.*--data-dir"):
        list(fetched)


def test_a_failure_of_the_hub_is_data_unavailable():
    def load_dataset(*args, **kwargs):
        raise ConnectionError("no route")

    with pytest.raises(DataUnavailable, match=r"cais/hle .*no route.*datasets/cais/hle.*HF_TOKEN"):
        list(fetch_from_hub(EVALUATED["HLE"].hub, load_dataset))


def test_importing_benchmarks_imports_no_heavy_library():
    code = "import sys, benchmarks; print(sorted(set(sys.modules) & set(sys.argv[1].split())))"
    heavy = "datasets torch transformers sympy math_verify pyarrow numpy huggingface_hub httpx"
    result = subprocess.run(
        [sys.executable, "-c", code, heavy], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "[]"
