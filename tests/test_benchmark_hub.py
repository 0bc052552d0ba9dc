"""Reading the public data sets: what is asked for, and what is said when it cannot be had."""

import subprocess
import sys

import pytest

from benchmarks import BENCHMARKS, DataUnavailable
from benchmarks.catalog import EVALUATED
from benchmarks.sources import HubTable, fetch_from_hub, hub_failure

THIRTEEN = [name for name in BENCHMARKS if name != "SyntheticQA"]
COMMIT = "c0ffee" * 6 + "c0ff"
WHO = "Who founded the mill of Oldtown?"


@pytest.mark.parametrize("name", ["GAIA", "HLE"])
def test_a_gated_set_says_which_page_to_accept_and_where_the_token_goes(name):
    table = EVALUATED[name].hub
    message = hub_failure(table, ConnectionError("401"))
    assert f"https://huggingface.co/datasets/{table.path}" in message
    assert "HF_TOKEN" in message
    assert "--data-dir" in message
    assert "HF_TOKEN" not in hub_failure(EVALUATED["GSM8K"].hub, ConnectionError("x"))


def test_the_hub_is_read_at_the_pinned_revision_through_datasets(tmp_path):
    for name in THIRTEEN:
        table = EVALUATED[name].hub
        assert len(table.revision) == 40 or name == "WebWalker", name
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


@pytest.mark.parametrize("reached", [True, False])
def test_a_branch_is_read_at_its_commit_and_the_commit_is_said(caplog, reached):
    asked = []

    def load_dataset(*where, revision, **how):
        asked.append(revision)
        return HubRows([])

    def commit_of(table):
        if not reached:
            raise ConnectionError("no route")
        return COMMIT

    list(fetch_from_hub(EVALUATED["WebWalker"].hub, load_dataset, commit_of))
    assert asked == [COMMIT if reached else "main"]
    read_at = f"commit {COMMIT}" if reached else "an unknown commit (ConnectionError)"
    assert f"callanwu/WebWalkerQA is not pinned: read at {read_at} of its branch" in caplog.text


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
