"""Validation during training, early stopping, and trackers that show the stream of metrics."""

import json
import sys
from types import SimpleNamespace

import pytest

from learners.config import RunConfig
from learners.errors import UsageError
from learners.metrics import METRICS
from learners.policy.loading import load_model
from learners.run_folder import evaluation_costs
from learners.runs import report
from learners.runs.evaluation import is_patience_exhausted
from learners.runs.trackers import open_trackers
from learners.runs.training import main
from tests import needs
from tests.learners.test_commands import refused


def arguments(model, out, iterations, *more):
    text = (
        f"--model {model} --tools search calculator --prompts 2 --minibatch-prompts 1 "
        f"--rollouts 4 --iterations {iterations} --max-response-tokens 60 --eval-tasks 0 "
        f"--threads 1 --out {out} --eval-every 2 --validation-tasks 3"
    )
    return [*text.split(), *more]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def validated(*scores):
    return [{"validation/score": score} if score is not None else {} for score in scores]


@pytest.mark.parametrize(
    ("scores", "stops"),
    [
        ([], False),
        ([0.5], False),
        ([0.5, None, 0.4], False),
        ([0.5, 0.4, None, 0.4], True),
        ([0.5, 0.5, 0.5], True),
        ([0.4, 0.5, 0.3], False),
        ([0.5, 0.4, 0.6], False),
    ],
)
def test_a_run_stops_after_patience_validations_without_a_better_score(scores, stops):
    assert is_patience_exhausted(RunConfig.of(patience=2), validated(*scores)) is stops
    assert is_patience_exhausted(RunConfig(), validated(*scores)) is False


def test_validation_is_in_the_stream_and_the_best_model_is_kept(taught, tmp_path):
    """After iterations 2 and 3, which is the last."""
    main("learners.grpo", arguments(taught, tmp_path, 3))
    found = [line.get("validation/score") for line in lines_of(tmp_path)]
    assert found[0] is None
    assert all(0 <= score <= 1 for score in found[1:])
    assert {"validation/score", "validation/reward"} < METRICS.keys()
    assert load_model(str(tmp_path / "best")).model.num_parameters() > 0


def test_a_run_that_was_stopped_early_stays_stopped(taught, tmp_path):
    """The tiny model never answers: the second and third validation are no better."""
    stop = ("--eval-every", "1", "--patience", "2", "--max-response-tokens", "8")
    main("learners.grpo", arguments(taught, tmp_path, 9, *stop))
    assert len(lines_of(tmp_path)) == 3
    main("learners.grpo", arguments(taught, tmp_path, 9, *stop))
    assert len(lines_of(tmp_path)) == 3


def test_a_run_that_stops_early_keeps_its_last_weights(taught, tmp_path):
    """The third iteration is the last, between two regular checkpoints; it gets one of its own."""
    stop = ("--eval-every", "1", "--patience", "2", "--max-response-tokens", "8")
    main("learners.grpo", arguments(taught, tmp_path, 9, *stop, "--checkpoint-every", "5"))
    assert len(lines_of(tmp_path)) == 3
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["000003"]


def test_patience_without_validation_is_refused(capsys, tmp_path):
    said = refused(capsys, f"--patience 2 --out {tmp_path}/run")
    assert "--patience 2 counts evaluations on validation tasks; give --eval-every" in said


def test_tensorboard_shows_every_line_of_the_stream_once_after_a_resume(taught, tmp_path):
    needs.packages("tensorboard")
    from tensorboard.backend.event_processing import event_accumulator as events

    main("learners.grpo", arguments(taught, tmp_path, 1, "--log", "tensorboard"))
    main("learners.grpo", arguments(taught, tmp_path, 3, "--log", "tensorboard"))
    shown = events.EventAccumulator(str(tmp_path / "tensorboard"))
    shown.Reload()
    lines = lines_of(tmp_path)
    for name in lines[0].keys() - {"iteration"}:
        found = [(event.step, event.value) for event in shown.Scalars(name)]
        expected = [(line["iteration"], line[name]) for line in lines if name in line]
        assert [step for step, _ in found] == [step for step, _ in expected], name
        assert [v for _, v in found] == pytest.approx([v for _, v in expected], rel=1e-5)


def stand_in(kept):
    """A module with the calls that trackio and wandb share; it records them."""

    def log(numbers, step):
        kept.append((step, numbers))

    run = SimpleNamespace(log=log, finish=lambda: kept.append("finished"))

    def init(**options):
        kept.append(options)
        return run

    return SimpleNamespace(init=init, log=log, finish=run.finish)


@pytest.mark.parametrize("name", ["trackio", "wandb"])
@pytest.mark.parametrize("resumed", [False, True])
def test_other_trackers_get_the_lines_as_they_are_written(monkeypatch, tmp_path, name, resumed):
    """Their packages are replaced: no account and no server is needed."""
    said = []
    monkeypatch.setitem(sys.modules, name, stand_in(said))
    kept = [{"iteration": 0, "reward/mean": 0.5}] if resumed else []
    with open_trackers((name,), tmp_path / "run", {"seed": 0}, kept) as show:
        show({"iteration": 1, "reward/mean": 0.25})
    options, line, end = said
    assert options["name"] == "run"
    assert options["config"] == {"seed": 0}
    fresh, again = {"trackio": ("never", "allow"), "wandb": ("allow", "must")}[name]
    assert options["resume"] == (again if resumed else fresh)
    assert line == (1, {"reward/mean": 0.25})
    assert end == "finished"


@pytest.mark.parametrize("name", ["tensorboard", "trackio", "wandb"])
def test_a_tracker_without_its_package_says_what_to_install(monkeypatch, tmp_path, name):
    monkeypatch.setitem(sys.modules, name, None)
    with (
        pytest.raises(UsageError, match=rf"--log {name} needs the package {name}: pip install"),
        open_trackers((name,), tmp_path, {}, []),
    ):
        pass


def test_the_cost_of_evaluations_is_shown_next_to_that_of_training(tmp_path):
    """Two evaluations and a validation: 5 + 5 + 2 tokens, 3 verdicts; training had 30 tokens."""
    told = {"ledger/sampled_tokens": 5, "seconds/sample": 0.5, "seconds": 9.0, "tasks": []}
    (tmp_path / "validation").mkdir()
    for name in ("evaluation-before", "evaluation-after"):
        (tmp_path / f"{name}.json").write_text(json.dumps(told))
    asked = {"ledger/sampled_tokens": 2, "ledger/judge_calls": 3, "ledger/cost": 0.25}
    (tmp_path / "validation" / "000001.json").write_text(json.dumps(asked))
    found = evaluation_costs(tmp_path)
    assert found == {
        "ledger/sampled_tokens": 12,
        "ledger/judge_calls": 3,
        "ledger/cost": 0.25,
        "seconds/sample": 1.0,
    }
    table = report._build_cost_table([{"ledger/sampled_tokens": 30, "memory/peak": 2**30}], found)
    cells = [list(column.cells) for column in table.columns]
    rows = {label: (run, other) for label, run, other in zip(*cells, strict=True)}
    assert rows["tokens sampled"] == ("30", "12")
    assert rows["verdicts of the judge"] == ("0", "3")
    assert rows["cost of calls and verdicts"] == ("0.0000", "0.2500")
    assert rows["peak memory"] == ("1.00 GiB", "-")
    assert rows["  sample"] == ("0.0", "1.0")
