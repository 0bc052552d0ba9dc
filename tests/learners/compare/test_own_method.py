"""Methods of a person's own: modules outside the table, trained as `python -m` runs them."""

import ast
import json
import sys

import pytest

from learners.compare.__main__ import main
from learners.compare.config import METHODS, Config, Method, parse_methods
from learners.compare.jobs import TrialFailed, check_run
from learners.compare.plan import final_trials
from tests.conftest import ROOT

MEDIAN_GRPO = '''
"""GRPO whose advantages are distances from the median."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from statistics import median

import torch

from learners.config import RunConfig
from learners.rl import clipped_policy_loss, sequence_mean
from learners.tree import Row


@dataclass(frozen=True)
class Config(RunConfig):
    """One field of its own."""

    rollouts: int = 4
    """Rollouts per prompt."""
    clip_low: float = 0.2
    """eps."""
    clip_high: float = 0.2
    """eps."""


def from_median(trees):
    """Reward less the median of the prompt's, for every token."""
    rows = []
    for tree in trees:
        middle = median(t.reward for t in tree.trajectories)
        rows += [Row(t, torch.full((len(t),), t.reward - middle)) for t in tree.trajectories]
    return rows


def iteration(tasks, run, config):
    """One training step."""
    run.sample_and_update(
        tasks,
        roots=config.rollouts,
        advantages=from_median,
        weights=sequence_mean,
        loss=partial(clipped_policy_loss, config=config),
    )
'''
LAST_LINES = """

if __name__ == "__main__":
    from learners.runs import main

    main("own_methods.median_grpo")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `own_methods` on PYTHONPATH, of this process and of its children; its folder."""
    folder = tmp_path / "elsewhere" / "own_methods"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", f"{folder.parent}:{ROOT}")
    monkeypatch.syspath_prepend(str(folder.parent))
    yield folder
    for name in [name for name in sys.modules if name.split(".")[0] == "own_methods"]:
        del sys.modules[name]


def comparison(tmp_path, model, *methods):
    """The arguments of a comparison that ends soon."""
    return [
        *("--name", "own", "--methods", *methods, "--seeds", "1", "--budget", "iterations=1"),
        *("--model", str(model), "--eval-every", "1", "--validation-tasks", "2"),
        *("--eval-tasks", "2", "--samples", "1", "--settings", "prompts=1"),
        *("minibatch_prompts=1", "max_response_tokens=40", "tools=search calculator"),
        *("--results", f"{tmp_path}/results", "--out", f"{tmp_path}/runs"),
    ]


def refused(capsys, tmp_path, *methods):
    with pytest.raises(SystemExit) as ended:
        main(comparison(tmp_path, "somewhere", *methods))
    assert ended.value.code == 2
    assert not (tmp_path / "results").exists()
    return " ".join(capsys.readouterr().err.split())


def test_the_table_has_every_method_of_learners():
    """A method is a module that defines `Config` and `iteration`."""
    definitions = {
        path.stem: {getattr(node, "name", "") for node in ast.parse(path.read_text("utf-8")).body}
        for path in (ROOT / "learners").glob("*.py")
    }
    methods = {
        f"learners.{n}" for n, names in definitions.items() if {"Config", "iteration"} <= names
    }
    assert methods == set(METHODS.values())


def test_what_is_no_method_is_refused_with_the_list_of_methods(capsys, tmp_path):
    """learners/tree.py exists, and is no method."""
    error = refused(capsys, tmp_path, "grpo", "tree")
    assert error.startswith("UsageError: --methods 'tree': 'tree' is not a method; expected one of")
    for name in METHODS:
        assert name in error
    assert "or a module of your own such as my_package.my_method" in error
    assert 'if __name__ == "__main__": main("my_package.my_method")' in error


def test_a_module_in_full_is_a_method_with_arguments_and_perhaps_a_name():
    texts = ("own_methods.median_grpo", "mine = own_methods.median_grpo --rollouts 4")
    assert parse_methods(Config(methods=texts)) == [
        ("own_methods.median_grpo", "own_methods.median_grpo", ()),
        ("mine", "own_methods.median_grpo", ("--rollouts", "4")),
    ]


def test_a_module_that_is_not_there_is_refused(capsys, tmp_path, package):
    error = refused(capsys, tmp_path, "own_methods.median_grpo")
    assert (
        "--methods own_methods.median_grpo: this module cannot be imported (No module named "
        "'own_methods.median_grpo'); give one that Python finds from this folder or on PYTHONPATH"
    ) in error
    (package / "broken.py").write_text("def iteration(:\n")
    assert "own_methods.broken: this module cannot be imported (" in refused(
        capsys, tmp_path, "own_methods.broken"
    )


@pytest.mark.parametrize(
    ("code", "lacking"),
    [
        ("def iteration(tasks, run, config): ...", "no Config that is a learners.config.RunConfig"),
        ("class Config: ...\ndef iteration(tasks, run, config): ...", "no Config that is"),
        ("from learners.grpo import Config", "has no iteration;"),
    ],
)
def test_a_module_that_lacks_what_a_method_needs_is_refused(
    capsys, tmp_path, package, code, lacking
):
    (package / "median_grpo.py").write_text(code)
    error = refused(capsys, tmp_path, "grpo", "mine = own_methods.median_grpo")
    assert lacking in error
    assert 'main("own_methods.median_grpo")' in error


def test_a_command_that_trains_nothing_or_something_else_is_a_failure(tmp_path):
    (trial,) = final_trials(Config(methods=("grpo",), seeds=1, out=str(tmp_path)), {})
    trial = trial._replace(method=Method("mine", "own_methods.median_grpo", ()))
    with pytest.raises(TrialFailed, match="made no run: the module must end with the lines"):
        check_run(trial)
    trial.folder.mkdir()
    (trial.folder / "config.json").write_text(json.dumps({"method": "learners.grpo"}))
    with pytest.raises(TrialFailed, match=r"made a run of learners\.grpo: the module must end"):
        check_run(trial)
    (trial.folder / "config.json").write_text(json.dumps({"method": "own_methods.median_grpo"}))
    check_run(trial)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_methods_of_ones_own_are_trained_and_what_lacks_its_last_lines_is_told(
    taught, tmp_path, package, capsys
):
    """One iteration in child processes; `python -m` of the second module does nothing."""
    (package / "median_grpo.py").write_text(MEDIAN_GRPO + LAST_LINES)
    (package / "forgotten.py").write_text(MEDIAN_GRPO)
    with pytest.raises(SystemExit) as ended:
        main(
            comparison(tmp_path, taught, "mine = own_methods.median_grpo", "own_methods.forgotten")
        )
    assert ended.value.code == 2
    output = " ".join(capsys.readouterr().out.split())
    assert "own_methods.forgotten, seed 0 failed: python -m own_methods.forgotten made" in output
    assert 'main("own_methods.forgotten"), as learners/grpo.py does' in output
    report = json.loads((tmp_path / "results" / "own" / "report.json").read_text())
    assert list(report["methods"]) == ["mine"]
    assert report["missing"] == ["own_methods.forgotten, seed 0"]
    (summary,) = (tmp_path / "results" / "own").glob("mine-0-*.json")
    content = json.loads(summary.read_text())
    assert content["method"] == "own_methods.median_grpo"
    assert content["spent"]["iterations"] == 1
