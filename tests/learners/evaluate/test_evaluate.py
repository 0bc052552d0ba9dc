"""Evaluating a model of ours: what is played, stored, graded, counted; kills and second looks."""

import json
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import tyro

from benchmarks import BENCHMARKS, Score, Task, sample_tasks
from learners.errors import RunFolderError, UsageError
from learners.evaluate.__main__ import evaluate, main
from learners.evaluate.config import Config, open_folder
from learners.evaluate.episodes import Episode, EpisodeFile, Job, mask, missing_jobs, unmask
from learners.evaluate.grading import Verdict, grade, summarise
from learners.intervals import bootstrap_mean, wilson
from learners.run_folder import newest_model
from learners.runs import report
from tests.conftest import ROOT
from tests.fakes import TOY

TASK = Task("t1", "Who founded the mill?", ("Ada Keller", "A. Keller"))
HOTPOT, XBENCH = BENCHMARKS["HotpotQA"], BENCHMARKS["xbench-DeepSearch"]


def verdict(task, status, sample=0, **fields):
    official = {"right": 1.0, "wrong": 0.0, "no answer": 0.0}.get(status)
    known = {"method": "m", "training": official, "em": None, "stop": "answered"}
    return Verdict(task, sample, status, official, **known | {"calls": (), "tokens": 10} | fields)


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]


def count(path):
    return path.read_bytes().count(b"\n") if path.exists() else 0


def config_of(model, out, **fields):
    known = {"env": ("appo/SyntheticQA-v0",), "tools": ("search", "calculator"), "tasks": 8}
    known |= {"max_response_tokens": 120, "threads": 1, "rows": 4}
    return Config(model=str(model), out=str(out), **known | fields)


def test_one_sample_per_task_is_a_rate_with_wilsons_interval():
    """3 of 4: (0.75 + 0.4802) / 1.9604 +- 0.3244: 0.300 to 0.954."""
    found = summarise(
        [verdict(name, "right") for name in "abc"] + [verdict("d", "wrong")]
    ).to_json()
    assert found["official"] | {"low": 0, "high": 0} == {
        "value": 0.75,
        "low": 0,
        "high": 0,
        "interval": "wilson",
    }
    assert found["official"]["low"] == pytest.approx(0.3006, abs=1e-4)
    assert found["official"]["high"] == pytest.approx(0.9544, abs=1e-4)
    assert found["pass_at"] == {}


def test_several_samples_are_bootstrapped_over_tasks_and_give_pass_at_k():
    """Two tasks of four samples with 2 and 0 right: pass@2 is (5/6 + 0) / 2."""
    made = [verdict("a", "right" if i < 2 else "wrong", i) for i in range(4)]
    made += [verdict("b", "wrong", i) for i in range(4)]
    found = summarise(made).to_json()
    assert found["official"]["value"] == 0.25
    assert (found["official"]["low"], found["official"]["high"]) == (0.0, 0.5)
    assert found["official"]["interval"] == "bootstrap over tasks"
    assert {k: v["value"] for k, v in found["pass_at"].items()} == {
        "1": pytest.approx(0.25),
        "2": pytest.approx(5 / 12),
        "4": 0.5,
    }


def test_a_task_with_fewer_samples_than_k_is_left_out_of_pass_at_k():
    made = [verdict("a", "wrong", 0), verdict("a", "right", 1), verdict("b", "right", 0)]
    made.append(verdict("b", "error", 1))
    found = summarise(made).to_json()
    assert (found["pass_at"]["2"]["value"], found["pass_at"]["2"]["tasks"]) == (1.0, 1)
    assert found["pass_at"]["1"]["tasks"] == 2


def test_errors_are_neither_right_nor_wrong():
    made = [verdict("a", "right"), verdict("b", "error", stop="", tokens=0)]
    made.append(verdict("c", "no answer", stop="length", calls=("search", "python")))
    found = summarise(made).to_json()
    assert found["official"]["value"] == 0.5
    assert found["status"] == {"right": 1, "error": 1, "no answer": 1}
    assert found["stop"] == {"answered": 1, "length": 1}
    assert (found["tool_calls"], found["tokens"]) == (1.0, 10.0)
    assert found["tool_calls_by_tool"] == {"search": 0.5, "python": 0.5}


def test_nothing_but_errors_gives_no_numbers():
    found = summarise([verdict("a", "error")]).to_json()
    assert (found["official"], found["training"], found["tokens"]) == (None, None, None)


def test_one_answer_that_only_a_judge_could_grade_leaves_no_official_number():
    made = [verdict("a", "right"), verdict("b", "not judged", training=0.5, em=0.0)]
    found = summarise([made[0], made[1]]).to_json()
    assert (found["official"], found["pass_at"], found["not_judged"]) == (None, {}, 1)
    assert found["training"]["value"] == 0.75


def test_the_bootstrap_covers_the_mean_it_should():
    """200 draws of 30 normal values: about 95 in 100 intervals hold the true mean."""
    draw = random.Random(0)
    held = 0
    for seed in range(200):
        found = bootstrap_mean([draw.gauss(1, 2) for _ in range(30)], seed)
        held += found.low <= 1 <= found.high
    assert 180 <= held <= 198
    assert bootstrap_mean([0.25] * 5) == (0.25, 0.25, 0.25)
    assert wilson(0, 20).low == 0


def test_official_score_training_score_and_exact_match_stand_side_by_side():
    found = grade(HOTPOT, TASK, Episode("t1", 0, "Sir Ada Keller", "answered", ("search",), 7))
    assert (found.status, found.official, found.em) == ("wrong", 0.0, 0.0)
    assert found.training == pytest.approx(0.8)
    assert (found.calls, found.tokens) == (("search",), 7)


def test_what_is_no_answer_or_no_episode_is_told_apart():
    none = grade(HOTPOT, TASK, Episode("t1", 0, None, "length"))
    assert (none.status, none.official, none.training, none.method) == ("no answer", 0, 0, "length")
    broken = grade(HOTPOT, TASK, Episode("t1", 0, error="the plug is out"))
    assert (broken.status, broken.official, broken.training) == ("error", None, None)
    free = grade(XBENCH, replace(TASK, answer_type="free"), Episode("t1", 0, "Ada", "answered"))
    assert (free.status, free.official) == ("not judged", None)
    assert free.training == pytest.approx(2 / 3)


def test_a_score_between_is_called_partly_right():
    partly = replace(TOY, score=lambda answer, task: Score(0.5, "half", answer))
    assert grade(partly, TASK, Episode("t1", 0, "x", "answered")).status == "partly"


def test_episodes_survive_a_kill_in_the_middle_of_a_line(tmp_path):
    path = tmp_path / "e.jsonl"
    file = EpisodeFile(path, frozenset())
    first = Episode("a", 0, "42", "answered", ("search",), 9, ("x", "y", "z"))
    file.append(first)
    file.append(Episode("b", 0, error="the plug is out"))
    with path.open("a", encoding="utf-8") as torn:
        torn.write('{"task": "c", "sam')
    again = EpisodeFile(path, frozenset())
    assert again.read()["a", 0] == first
    jobs = [Job(Task(name, "q", ("a",)), 0) for name in "abc"]
    assert [job.task.id for job in missing_jobs(jobs, again.read())] == ["b", "c"]
    again.append(Episode("b", 0, "7", "answered"))
    assert EpisodeFile(path, frozenset()).read()["b", 0].answer == "7"


def test_what_was_said_about_a_restricted_task_is_not_in_the_clear(tmp_path):
    path = tmp_path / "e.jsonl"
    said = Episode("a", 0, "\u963f\u8fbe secret", "answered", (), 1, ("the secret \ud800 is out",))
    EpisodeFile(path, frozenset({"a"})).append(said)
    assert "secret" not in path.read_text("utf-8")
    assert EpisodeFile(path, frozenset({"a"})).read()["a", 0] == said
    assert unmask(mask("x", "a"), "b") != "x"


def test_a_larger_draw_of_tasks_holds_the_smaller_one():
    tasks = [Task(str(i), "q", ("a",)) for i in range(50)]
    small, large = sample_tasks(tasks, 5), sample_tasks(tasks, 20)
    assert {t.id for t in small} < {t.id for t in large}
    assert [int(t.id) for t in large] == sorted(int(t.id) for t in large)
    assert sample_tasks(tasks, None) == tasks
    assert sample_tasks(tasks, 5) != tasks[:5]


@pytest.fixture(scope="module")
def whole(taught, tmp_path_factory):
    """An evaluation that nothing interrupted: 8 tasks, 2 samples; its folder and results."""
    out = tmp_path_factory.mktemp("whole")
    return out, evaluate(config_of(taught, out, samples=2, temperature=1.0))


def test_results_hold_the_numbers_and_what_belongs_beside_them(whole, taught):
    out, results = whole
    results = results.to_json()
    found = results["environments"]["appo/SyntheticQA-v0"]
    assert json.loads((out / "results.json").read_text()) == results
    assert results["player"]["model"] == str(taught)
    assert results["player"]["protocol"] == "tokens"
    assert results["judge"] is None
    assert (found["tasks"], found["samples"], found["episodes"]) == (8, 2, 16)
    assert found["tools"] == ["search", "calculator"]
    assert found["max_response_tokens"] == 120
    assert set(found["pass_at"]) == {"1", "2"}
    assert sum(found["status"].values()) == sum(found["stop"].values()) == 16
    rows = lines(out / "SyntheticQA.graded.jsonl")
    assert found["tokens"] == sum(row["tokens"] for row in rows) / 16
    assert found["official"]["value"] == sum(row["official"] for row in rows) / 16


def test_episodes_are_what_a_rollout_of_the_same_draws_makes(whole):
    """Rows in one forward pass change no episode; samples of one task have draws of their own."""
    episodes = lines(whole[0] / "SyntheticQA.episodes.jsonl")
    assert len({(row["task"], row["sample"]) for row in episodes}) == 16
    first = {row["task"]: row["transcript"] for row in episodes if row["sample"] == 0}
    second = {row["task"]: row["transcript"] for row in episodes if row["sample"] == 1}
    assert any(first[task] != second[task] for task in first)
    answered = [row for row in episodes if row["stop"] == "answered"]
    assert answered
    assert all(row["answer"] is not None for row in answered)


def test_running_it_again_plays_nothing_and_says_the_same(whole, tmp_path):
    out, results = whole
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    before = (copy / "SyntheticQA.episodes.jsonl").read_bytes()
    again = evaluate(Config(**stored(copy) | {"out": str(copy)}))
    assert again == results
    assert (copy / "SyntheticQA.episodes.jsonl").read_bytes() == before


def stored(folder):
    found = json.loads((folder / "config.json").read_text())
    return {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}


def test_a_lost_line_is_played_again_as_it_was(whole, tmp_path):
    out, results = whole
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    path = copy / "SyntheticQA.episodes.jsonl"
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[2:9]) + kept[9][:20])
    assert evaluate(Config(**stored(copy) | {"out": str(copy)})) == results
    by_job = {(row["task"], row["sample"]): row for row in lines(path)}
    assert all(by_job[row["task"], row["sample"]] == row for row in map(json.loads, kept))


def test_stored_episodes_are_graded_again_without_the_model(whole, tmp_path):
    out, results = whole
    copy = tmp_path / "copy"
    shutil.copytree(out, copy)
    (copy / "SyntheticQA.graded.jsonl").unlink()
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(config | {"model": str(tmp_path / "gone")}))
    assert evaluate(Config(regrade=True, out=str(copy))) == results
    assert (copy / "SyntheticQA.graded.jsonl").exists()
    fewer = evaluate(Config(regrade=True, out=str(copy), env=("appo/SyntheticQA-v0",), tasks=3))
    assert fewer.environments["appo/SyntheticQA-v0"].grades.episodes == 6
    with pytest.raises(RunFolderError, match="holds no evaluation to grade again"):
        evaluate(Config(regrade=True, out=str(tmp_path / "none")))


def test_a_folder_holds_one_evaluation_and_one_process(whole, taught):
    out, _ = whole
    with pytest.raises(RunFolderError, match=r"temperature was 1\.0, now 0\.5"):
        evaluate(config_of(taught, out, samples=2, temperature=0.5))
    again = Config(**stored(out))
    with (
        open_folder(out, again),
        pytest.raises(RunFolderError, match="another process is evaluating"),
        open_folder(out, again),
    ):
        pass


def test_what_cannot_be_asked_is_refused(taught, tmp_path, capsys):
    with pytest.raises(UsageError, match=r"--samples 4 of a greedy model are all alike"):
        evaluate(config_of(taught, tmp_path / "a", samples=4))
    with pytest.raises(UsageError, match="count from 1"):
        evaluate(config_of(taught, tmp_path / "a", samples=0))
    with pytest.raises(UsageError, match="--env, or all thirteen"):
        evaluate(Config(model=str(taught), out=str(tmp_path / "b")))
    with pytest.raises(UsageError, match="needs --judge-model"):
        evaluate(config_of(taught, tmp_path / "c", tasks=1, judge_base="http://x/v1"))
    with pytest.raises(SystemExit):
        main(["--env", "appo/GSM8k-v0", "--out", str(tmp_path / "d")])
    assert "Did you mean: `GSM8K`?" in capsys.readouterr().err


def command(config):
    given = ["--model", config.model, "--out", config.out, "--env", *config.env]
    given += ["--tools", *config.tools, "--temperature", "1", "--samples", str(config.samples)]
    given += ["--max-response-tokens", "120", "--threads", "1", "--rows", "2"]
    return [sys.executable, "-m", "learners.evaluate", *given, "--tasks", str(config.tasks)]


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_where_it_was(taught, tmp_path):
    """SIGKILL at some moment, twice; the result is that of a run that nobody killed."""
    config = config_of(taught, tmp_path / "killed", tasks=20, samples=2)
    path = tmp_path / "killed/SyntheticQA.episodes.jsonl"
    for enough in (3, 20):
        process = subprocess.Popen(command(config), cwd=ROOT, stdout=subprocess.DEVNULL)
        while process.poll() is None and count(path) < enough:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 20 <= count(path) < 40
    subprocess.run(command(config), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    unkilled = replace(config, out=str(tmp_path / "unkilled"))
    subprocess.run(command(unkilled), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    graded = [tmp_path / name / "SyntheticQA.graded.jsonl" for name in ("killed", "unkilled")]
    assert lines(graded[0]) == lines(graded[1])


def test_the_folder_of_a_run_means_its_newest_checkpoint(tmp_path):
    for name in ("000002", "000010", "partial"):
        (tmp_path / "run/checkpoints" / name).mkdir(parents=True)
    assert newest_model(str(tmp_path / "run")) == str(tmp_path / "run/checkpoints/000010")
    assert newest_model("smollm2") == "smollm2"
    assert newest_model(str(tmp_path)) == str(tmp_path)


def test_a_training_run_reports_no_accuracy_where_a_judge_is_missing():
    row = {"score": 1.0, "judged": True}
    assert report._format_accuracy([(row, row)])[2] == "0.000 [0.000, 0.000]"
    assert report._format_accuracy([(row, row | {"judged": False})]) == [
        "not judged",
        "not judged",
        "-",
    ]


def documented_commands():
    page = (ROOT / "docs/evaluating.md").read_text("utf-8")
    found = page.partition("```bash\n")[2].partition("```")[0].splitlines()
    return [shlex.split(line)[3:] for line in found]


def test_the_documented_commands_are_understood_and_the_first_runs(data_dir, tmp_path, capsys):
    first, *others = documented_commands()
    assert len(others) == 3
    for arguments in others:
        tyro.cli(Config, args=arguments)
    small = ["--model", "tiny", "--tasks", "2", "--max-response-tokens", "40", "--threads", "1"]
    given = [str(data_dir) if word == "../shared/data" else word for word in first]
    main([*given, *small, "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "HotpotQA-v0" in said
    assert "official score" in said
    found = json.loads((tmp_path / "results.json").read_text())["environments"]
    assert found["appo/GSM8K-v0"]["rows"]["rows read"] == found["appo/GSM8K-v0"]["rows"]["tasks"]
