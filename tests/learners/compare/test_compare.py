"""Comparisons: what is asked for becomes runs, runs become summaries, and nothing is run twice."""

import json
import shlex
from dataclasses import replace

import pytest

from learners.compare.__main__ import main
from learners.compare.config import (
    Config,
    TrainingBudget,
    default_config,
    parse_budget,
    parse_methods,
    read_spec,
    reference_label,
)
from learners.compare.jobs import store_tasks
from learners.compare.plan import evaluation_folder, final_trials, start_trials, tuning_trials
from learners.compare.summary import (
    decode_scores,
    encode_scores,
    judge_usage,
    read_summary,
    write_summary,
)
from learners.errors import UsageError
from learners.evaluate.__main__ import main as evaluate
from learners.runs.training import main as train
from tests.conftest import ROOT
from tests.learners.test_commands import python

SPECS = sorted((ROOT / "results").glob("*.toml"))
SMALL = Config(methods=("grpo", "appo"), seeds=2, model="somewhere")


@pytest.mark.parametrize(
    ("text", "method"),
    [
        ("grpo", ("grpo", "learners.grpo", ())),
        ("learners.grpo", ("grpo", "learners.grpo", ())),
        ("appo --layers 2", ("appo --layers 2", "learners.appo", ("--layers", "2"))),
        (
            "no-future = appo --future-weight=0",
            ("no-future", "learners.appo", ("--future-weight=0",)),
        ),
    ],
)
def test_a_method_is_a_learner_with_arguments_and_perhaps_a_name(text, method):
    assert parse_methods(Config(methods=(text,))) == [method]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"methods": ("grpoo",)}, "'grpoo' is not a method; expected one of appo, "),
        ({"methods": ("learners.tree",)}, "'tree' is not a method; expected one of appo, "),
        ({"methods": ("grpo", "grpo")}, "each needs a name of its own"),
        ({"methods": ("a b = grpo", "a-b = appo")}, "each needs a name of its own"),
        ({"methods": ("start = grpo",)}, "each needs a name of its own"),
        ({"methods": ()}, "each needs a name of its own"),
        (
            {"budget": "tokens"},
            "expected tokens=..., flops=..., calls=..., seconds=..., iterations",
        ),
        ({"budget": "tokens=0"}, "--budget tokens=0"),
        ({"against": "dapo"}, "--against dapo: none of grpo, appo"),
    ],
)
def test_what_cannot_be_compared_is_refused(options, told):
    config = replace(SMALL, **options)
    with pytest.raises(UsageError, match=told):
        (parse_methods(config), parse_budget(config), reference_label(config))


def test_all_are_held_against_appo_unless_another_is_named():
    assert reference_label(SMALL) == "appo"
    assert reference_label(replace(SMALL, against="grpo")) == "grpo"
    assert reference_label(replace(SMALL, methods=("dapo", "grpo"))) == "dapo"


def test_a_budget_is_an_amount_of_something():
    assert parse_budget(Config(budget="flops=1e12")) == TrainingBudget("flops", 1e12)
    assert str(parse_budget(Config(budget="tokens=200000"))) == "200,000 tokens"


def test_a_spec_is_what_the_command_line_changes(tmp_path):
    (tmp_path / "lab.toml").write_text('seeds = 3\nmethods = ["dapo"]\nrates = [1e-3]\n')
    found = default_config(["--spec", str(tmp_path / "lab.toml"), "--seeds", "4"])
    assert (found.name, found.seeds, found.methods, found.rates) == ("lab", 3, ("dapo",), (1e-3,))
    assert default_config(["--seeds", "4"]) == Config()


def test_a_spec_with_an_unknown_field_is_refused(tmp_path):
    (tmp_path / "lab.toml").write_text("seed = 3\n")
    with pytest.raises(UsageError, match=r"lab.toml: seed: no option of a comparison"):
        read_spec(tmp_path / "lab.toml")
    with pytest.raises(UsageError, match="No such file"):
        read_spec(tmp_path / "none.toml")


@pytest.mark.parametrize("spec", SPECS, ids=lambda path: path.stem)
def test_every_committed_spec_can_be_planned(spec):
    """Each trial's arguments are parsed by its learner's own command line; all names differ."""
    config = read_spec(spec)
    trials = [*start_trials(config), *tuning_trials(config), *final_trials(config, {})]
    assert len({trial.summary for trial in trials}) == len(trials)
    assert len(final_trials(config, {})) == config.seeds * len(parse_methods(config))


def test_there_are_specs():
    assert len(SPECS) >= 2


def test_a_trial_is_found_again_wherever_its_runs_lie():
    (first, *_) = final_trials(SMALL, {})
    (moved, *_) = final_trials(replace(SMALL, out="elsewhere", data_dir="rows", jobs=2), {})
    assert first.summary == moved.summary
    assert first.folder != moved.folder


@pytest.mark.parametrize(
    "options",
    [
        {"budget": "tokens=1"},
        {"settings": ("prompts=3",)},
        {"level": "2"},
        {"eval_tasks": 3},
        {"samples": 3},
        {"start": ("seed=3",)},
    ],
)
def test_a_trial_of_other_numbers_is_another(options):
    (first, *_) = final_trials(SMALL, {})
    (other, *_) = final_trials(replace(SMALL, **options), {})
    assert first.summary != other.summary


def test_all_trials_of_a_seed_are_given_the_same_tasks_and_draws():
    """Only what the method is differs between the commands of two methods."""
    grpo, appo, *_ = (shlex.join(trial.train) for trial in final_trials(SMALL, {}))
    assert grpo.replace("grpo", "appo").split("--out")[0] == appo.split("--out")[0]
    one, other, *_ = (trial.evaluations[0] for trial in final_trials(SMALL, {}))
    assert [(a, b) for a, b in zip(one, other, strict=True) if a != b] == [
        (one[i], other[i]) for i, word in enumerate(one) if "grpo-0" in word
    ]


def test_a_judge_of_the_runs_grades_their_evaluations_and_is_part_of_their_names():
    """Its address and key are not: the same judge may answer elsewhere."""
    asked = "judge_base=http://judge.test/v1", "judge_model=judge-1", "prices=judge 0.25"
    judged = replace(SMALL, settings=asked)
    for trials in (start_trials, lambda config: final_trials(config, {})):
        (plain, *_), (trial, *_) = trials(SMALL), trials(judged)
        command = shlex.join(trial.evaluations[0])
        assert "--judge-base http://judge.test/v1 --judge-model judge-1" in command
        assert "--judge-price 0.25" in command
        assert "judge" not in shlex.join(plain.evaluations[0])
        assert trial.digest != plain.digest
        moved = replace(SMALL, settings=("judge_base=http://other.test/v1", *asked[1:]))
        assert trials(moved)[0].digest == trial.digest


def test_tuning_has_seeds_of_its_own_and_the_same_trials_for_every_method():
    trials = tuning_trials(replace(SMALL, rates=(1e-4, 1e-3), tuning_seeds=2))
    for method in parse_methods(SMALL):
        tried = [(t.seed, t.rate) for t in trials if t.method == method]
        assert tried == [(1000, 1e-4), (1000, 1e-3), (1001, 1e-4), (1001, 1e-3)]
    assert not tuning_trials(SMALL)


@pytest.mark.parametrize("scores", [[1.0, None, 0.0, 9.0], [0.25, None, 1.0], [10.0, 0.0]])
def test_scores_survive_their_short_form(scores):
    assert decode_scores(json.loads(json.dumps(encode_scores(scores)))) == scores
    assert encode_scores([1.0, None, 0.0]) == "1-0"


def refused(capsys, *given):
    with pytest.raises(SystemExit) as ended:
        main(given)
    said = " ".join(capsys.readouterr().err.split())
    assert ended.value.code == 2, said
    return said


def test_a_start_that_is_not_there_is_named(capsys, tmp_path):
    given = ("--model", f"{tmp_path}/none", "--results", str(tmp_path / "results"))
    said = refused(capsys, *given, "--out", str(tmp_path / "runs"))
    assert f"--model {tmp_path}/none: there is no such folder" in said
    assert "--start" in said


def test_new_weights_for_every_seed_are_refused(capsys):
    assert "cold-start it first" in refused(capsys, "--model", "tiny")


def test_help_names_every_field_and_imports_no_transformers():
    code = (
        "import sys; from learners.compare.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: print('transformers' in sys.modules, 'torch' in sys.modules)"
    )
    status, said, _ = python("-c", code, COLUMNS="200")
    assert status == 0
    assert said.endswith("False False\n")
    for words in ("--methods", "--seeds", "--budget", "--dry-run", "--jobs"):
        assert words in said


def test_a_trial_becomes_a_summary_of_a_few_kb(taught, tmp_path):
    """Its commands, in this process: trained to 200 tokens, evaluated twice a task."""
    config = Config(
        name="one",
        methods=("grpo",),
        seeds=1,
        budget="tokens=200",
        model=str(taught),
        settings=("prompts=2", "rollouts=4", "max_response_tokens=60", "tools=search calculator"),
        eval_every=1,
        validation_tasks=3,
        eval_tasks=4,
        samples=2,
        results=str(tmp_path / "results"),
        out=str(tmp_path / "runs"),
    )
    tasks = store_tasks(config)
    (trial,) = final_trials(config, {})
    train(trial.method.module, list(trial.train[3:]))
    evaluate(list(trial.evaluations[0][3:]))
    write_summary(trial, tasks, 1)
    found = read_summary(trial.summary)
    lines = [json.loads(x) for x in (trial.folder / "metrics.jsonl").read_text().splitlines()]
    sampled = sum(line["ledger/sampled_tokens"] for line in lines)
    assert found["spent"]["tokens"] == sampled >= 200
    assert found["spent"]["iterations"] == len(found["curve"]) == len(lines)
    assert found["spent"]["peak_memory"] == max(line["memory/peak"] for line in lines)
    assert "judge" not in found
    assert found["curve"][-1]["tokens"] == sampled
    last = [score for score in decode_scores(found["curve"][-1]["scores"]) if score is not None]
    assert sum(last) / len(last) == pytest.approx(lines[-1]["validation/score"])
    assert found["test"]["samples"] == 2
    results = json.loads(
        (trial.folder.parent / f"{trial.folder.name}-test/results.json").read_text()
    )
    official = results["environments"]["appo/SyntheticQA-v0"]["official"]["value"]
    assert sum(decode_scores(found["test"]["scores"])) / 8 == pytest.approx(official)
    assert trial.summary.stat().st_size < 10_000
    with pytest.raises(UsageError, match="names other tasks"):
        store_tasks(replace(config, eval_tasks=5))


def test_what_validations_and_the_end_asked_of_a_judge_is_added_up(tmp_path):
    """Two validations with three verdicts each, one of them known, and an end with four."""
    (trial, *_) = final_trials(replace(SMALL, out=str(tmp_path)), {})
    asked = {"ledger/judge_calls": 3, "ledger/judge_cached": 1, "ledger/cost": 0.5}
    (trial.folder / "validation").mkdir(parents=True)
    for done in (1, 2):
        (trial.folder / "validation" / f"{done:06d}.json").write_text(json.dumps(asked))
    end = evaluation_folder(trial.folder, "test")
    end.mkdir()
    judge = {"model": "judge-1", "calls": 4, "cached": 0, "faults": 2, "cost": 1.0}
    (end / "results.json").write_text(json.dumps({"judge": judge}))
    assert judge_usage(trial) == {"calls": 10, "cached": 2, "faults": 2, "cost": 2.0}
    (end / "results.json").write_text(json.dumps({"judge": None}))
    assert judge_usage(trial)["calls"] == 6


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.timeout(1200)
def test_a_comparison_runs_once_and_goes_on_where_it_was(taught, tmp_path, capsys):
    """Two methods, one seed; then nothing is left, then a summary is made again from its run."""
    given = shlex.split(
        f"--name small --methods grpo 'wide = appo --groups one' --seeds 1 --budget tokens=200 "
        f"--model {taught} --settings prompts=2 minibatch_prompts=1 rollouts=4 "
        f"max_response_tokens=60 'tools=search calculator' --eval-every 1 --validation-tasks 3 "
        f"--eval-tasks 4 --samples 2 --jobs 2 --results {tmp_path}/results --out {tmp_path}/runs"
    )
    main([*given, "--dry-run"])
    said = " ".join(capsys.readouterr().out.split())
    assert "2 methods x 1 seeds, each to 200 tokens: 3 trials" in said
    assert "at the pace of one iteration of grpo" in said
    assert not (tmp_path / "runs").exists()
    main(given)
    folder = tmp_path / "results" / "small"
    report = json.loads((folder / "report.json").read_text())
    assert list(report["methods"]) == ["grpo", "wide"]
    assert report["missing"] == []
    for found in report["methods"].values():
        assert found["spent"]["tokens"] >= 200
        assert 0 <= found["accuracy"]["value"] <= found["pass_at"]["2"]["value"] <= 1
        assert len(found["curve"]["heights"]) == 41
    assert (folder / "report.md").read_text().startswith("# small\n")
    assert {"curves.png", "curves.svg", "cost.svg"} < {p.name for p in folder.iterdir()}
    summaries = {p: p.read_text() for p in folder.glob("*-0-*.json")}
    assert len(summaries) == 3
    assert all(len(text) < 10_000 for text in summaries.values())
    logs = {p: p.stat().st_size for p in (tmp_path / "runs" / "logs").iterdir()}
    main(given)
    assert {p: p.stat().st_size for p in (tmp_path / "runs" / "logs").iterdir()} == logs
    lost = next(p for p in summaries if p.name.startswith("wide"))
    lost.unlink()
    main(given)
    assert json.loads(lost.read_text()) == json.loads(summaries[lost])
