"""Summaries written anew: they gain what they lacked, and nothing that they had changes."""

import json

import pytest

from learners.compare_plan import evaluation_folder, final_trials, start_trials
from learners.compare_resummarise import Anew, resummarise
from learners.compare_summary import ORIGIN, as_text, summarised
from tests.compare_fakes import TASKS, config_in

MADE = {"weights": "w0", "made": {"commit": "of then", "processor": "one", "jobs": 2}}
LINES = [
    {"iteration": 0, "ledger/sampled_tokens": 60, "ledger/prefilled_tokens": 5, "reward/mean": 0.5},
    {"iteration": 1, "ledger/sampled_tokens": 50, "ledger/prefilled_tokens": 6, "reward/mean": 0.7},
]


@pytest.fixture
def config(tmp_path):
    return config_in(tmp_path)


def ran(trial):
    """The folders of a run of two iterations, evaluated twice a task."""
    trial.folder.mkdir(parents=True)
    metrics = "".join(json.dumps(line) + "\n" for line in LINES)
    (trial.folder / "metrics.jsonl").write_text(metrics)
    (trial.folder / "config.json").write_text(json.dumps({"prompts": 2, "rollouts": 2}))
    test = evaluation_folder(trial.folder, "test")
    test.mkdir()
    row = {"status": "right", "official": 1.0, "stop": "answered", "calls": [1], "tokens": 9}
    rows = [{"task": task} | row for task in TASKS["test"]["ids"] * 2]
    (test / "one.graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def kept_by_an_earlier_version(trial):
    """The text of its summary, without what is summed up since."""
    found = summarised(trial, TASKS, MADE)
    del found["first_rewards"], found["spent"]["prefilled"], found["spent"]["retries"]
    trial.summary.parent.mkdir(parents=True, exist_ok=True)
    trial.summary.write_text(as_text(found))
    return as_text(found)


def test_a_summary_gains_what_it_lacked_and_keeps_the_rest_and_its_origin(config):
    trial = final_trials(config, {})[0]
    ran(trial)
    old = json.loads(kept_by_an_earlier_version(trial))
    assert resummarise(config, TASKS) == Anew(1, [], {})
    new = json.loads(trial.summary.read_text())
    assert new["spent"].pop("prefilled") == 11
    assert new["spent"].pop("retries") == 0
    assert new.pop("first_rewards") == [None, None]
    assert as_text(new) == as_text(old)
    assert {name: new[name] for name in ORIGIN} == MADE


def test_once_written_anew_a_summary_stays_as_it_is(config):
    trial = final_trials(config, {})[0]
    ran(trial)
    kept_by_an_earlier_version(trial)
    resummarise(config, TASKS)
    text = trial.summary.read_text()
    assert resummarise(config, TASKS) == Anew(1, [], {})
    assert trial.summary.read_text() == text


def test_a_summary_whose_run_gives_another_number_is_left_alone_and_the_field_is_told(config):
    """The run has lost its last iteration since."""
    trial = final_trials(config, {})[0]
    ran(trial)
    text = kept_by_an_earlier_version(trial)
    (trial.folder / "metrics.jsonl").write_text(json.dumps(LINES[0]) + "\n")
    found = resummarise(config, TASKS)
    assert found.written == 0
    names = found.left[trial.title]
    assert {"spent.iterations", "spent.tokens", "rewards"} <= set(names)
    assert "spent.calls" not in names
    assert trial.summary.read_text() == text


@pytest.mark.parametrize("lost", ["run", "test"])
def test_a_summary_without_its_run_is_left_alone_and_its_trial_named(config, lost):
    trial = final_trials(config, {})[0]
    ran(trial)
    text = kept_by_an_earlier_version(trial)
    folder = trial.folder if lost == "run" else evaluation_folder(trial.folder, "test")
    folder.rename(folder.with_name("elsewhere"))
    assert resummarise(config, TASKS) == Anew(0, ["grpo, seed 0"], {})
    assert trial.summary.read_text() == text


def test_what_has_no_summary_is_given_none(config):
    ran(final_trials(config, {})[0])
    assert resummarise(config, TASKS) == Anew(0, [], {})
    every = [*start_trials(config), *final_trials(config, {})]
    assert not any(trial.summary.exists() for trial in every)
