"""Trials as child processes: what fails is told and stops no other, what runs can be stopped."""

import json
import shlex
import sys
import threading
import time
from dataclasses import replace

import pytest

from learners.compare.__main__ import main, start_command
from learners.compare.config import Config
from learners.compare.jobs import ChildProcesses, TrialFailed, run_all, start_exists
from learners.compare.plan import final_trials, start_trials

FAIL = "print('the plug is out'); raise SystemExit(3)"


def python(code):
    return (sys.executable, "-c", code)


def test_a_trial_that_fails_is_told_with_its_last_words_and_stops_no_other(tmp_path):
    """Four trials: one is done already, three fail; each is tried."""
    config = Config(
        methods=("grpo", "appo"),
        seeds=2,
        model="somewhere",
        results=str(tmp_path / "results"),
        out=str(tmp_path / "runs"),
    )
    done, *others = [t._replace(train=python(FAIL)) for t in final_trials(config, {})]
    done.summary.parent.mkdir(parents=True)
    done.summary.write_text(json.dumps({"version": 1}))
    said = []
    failed = run_all([done, *others], {}, 2, said.append)
    assert set(failed) == {"appo, seed 0", "grpo, seed 1", "appo, seed 1"}
    assert all("ended with 3" in why and "the plug is out" in why for why in failed.values())
    assert said[0] == "1 of 4 have their summary already"
    assert sorted(line.split(":")[1] for line in said[1:]) == [" failed"] * 3


def test_children_that_run_are_interrupted_and_none_is_started_after(tmp_path):
    children, ended = ChildProcesses(), []
    ready = tmp_path / "ready"
    code = (
        "import pathlib, signal, sys, time\n"
        "signal.signal(signal.SIGINT, lambda *_: sys.exit(7))\n"
        f"pathlib.Path({str(ready)!r}).touch()\n"
        "while True: time.sleep(0.01)"
    )

    def run():
        with pytest.raises(TrialFailed, match="ended with 7"):
            children.run(python(code), tmp_path / "log")
        ended.append(True)

    thread = threading.Thread(target=run)
    thread.start()
    while not ready.exists():
        assert thread.is_alive()
        time.sleep(0.01)
    children.stop()
    thread.join(60)
    assert ended == [True]
    with pytest.raises(TrialFailed, match="stopped before it began"):
        children.run(python("raise SystemExit(0)"), tmp_path / "log")


def test_a_start_is_made_by_the_command_that_the_spec_gives(tmp_path):
    config = Config(model=str(tmp_path / "start"), start=("model=tiny", "seed=1"), data_dir="rows")
    told = shlex.join(start_command(config)[1:])
    wanted = f"-m learners.sft --model tiny --seed 1 --out {tmp_path}/start --data-dir rows"
    assert told == wanted
    assert not start_exists(config)
    (tmp_path / "start").mkdir()
    assert not start_exists(config)  # begun, not done
    (tmp_path / "start" / "summary.json").write_text("{}")
    assert start_exists(config)
    assert start_exists(Config(model="smollm2"))


def test_an_estimate_without_a_start_says_what_is_missing(tmp_path, capsys):
    given = f"--methods grpo appo --seeds 3 --model {tmp_path}/none --results {tmp_path} --dry-run"
    main(given.split())
    said = " ".join(capsys.readouterr().out.split())
    assert "2 methods x 3 seeds, each to 200,000 tokens: 9 trials" in said
    assert "9 not run yet" in said
    assert "which does not exist" in said


def test_what_trains_in_bfloat16_is_evaluated_in_it():
    plain = Config(methods=("grpo",), model="somewhere")
    rounded = replace(plain, settings=("autocast",))
    for trials in (start_trials, lambda config: final_trials(config, {})):
        (one, *_), (other, *_) = trials(plain), trials(rounded)
        assert "--dtype bfloat16" in shlex.join(other.evaluations[0])
        assert "--dtype" not in shlex.join(one.evaluations[0])
        assert other.digest != one.digest
