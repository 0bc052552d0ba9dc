"""Interrupted runs: the same command resumes them, to the numbers of an undisturbed run."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from safetensors.torch import load_file

from learners.runs.training import main
from tests.conftest import ROOT

ITERATIONS = 3


def arguments(model, out):
    """A run of a few seconds in which rewards differ, so that the weights move."""
    text = (
        f"--model {model} --tools search calculator --prompts 3 --minibatch-prompts 1 "
        f"--rollouts 6 --initial-rollouts 3 --iterations {ITERATIONS} --max-response-tokens 80 "
        f"--temperature 1.4 --eval-tasks 2 --threads 1 --learning-rate 1e-3 --out {out}"
    )
    return text.split()


def start(model, out, more=(), **options):
    """The run as a person starts it."""
    command = [sys.executable, "-m", "learners.appo", *arguments(model, out), *more]
    return subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def kill_when(run, happened, sig=signal.SIGKILL):
    """Send the signal as soon as the condition is true; return what the run printed."""
    while run.poll() is None and not happened():
        time.sleep(0.0005)
    run.send_signal(sig)
    return run.communicate(timeout=120)[0]


def lines_of(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def metrics_of(folder):
    """All metrics but times, memory and lost work, which a disturbed run has alone."""
    return [
        {n: v for n, v in line.items() if not n.startswith(("seconds/", "memory/", "ledger/lost"))}
        for line in lines_of(folder)
    ]


def same_totals(folder):
    """Totals are the sum of what iterations and evaluations report as used and as lost."""
    spent = json.loads((folder / "spent.json").read_text())
    names = ("before", "after")
    kept = [json.loads((folder / f"evaluation-{name}.json").read_text()) for name in names]
    for total, lost in (("sampled_tokens", "lost_tokens"), ("tool_calls", "lost_calls")):
        rows = [*lines_of(folder), *kept]
        told = sum(row.get(f"ledger/{name}", 0) for row in rows for name in (total, lost))
        assert spent[total] == told


def weights_of(folder):
    return load_file(folder / "checkpoints" / f"{ITERATIONS:06d}" / "model.safetensors")


def same_numbers(one, other):
    assert metrics_of(one) == metrics_of(other)
    ours, theirs = weights_of(one), weights_of(other)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    for name in ("before", "after"):
        files = [json.loads((f / f"evaluation-{name}.json").read_text()) for f in (one, other)]
        assert files[0]["tasks"] == files[1]["tasks"]


@pytest.fixture(scope="module")
def undisturbed(taught, tmp_path_factory):
    """Folder of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    main("learners.appo", arguments(taught, folder))
    return folder


def test_an_undisturbed_run_trains(undisturbed, taught):
    """Otherwise the tests below would compare nothing."""
    steps = [line["update/steps"] for line in metrics_of(undisturbed)]
    assert len(steps) == ITERATIONS
    assert sum(count > 0 for count in steps) >= 2
    before = load_file(taught / "model.safetensors")
    assert any(not torch.equal(before[n], w) for n, w in weights_of(undisturbed).items())
    assert sorted(p.name for p in (undisturbed / "checkpoints").iterdir()) == ["000002", "000003"]


@pytest.mark.slow
def test_a_run_killed_while_it_writes_a_checkpoint_ends_with_the_same_numbers(
    taught, undisturbed, tmp_path
):
    """During the second checkpoint: the first stays intact, and no partial one is left."""
    run = start(taught, tmp_path)
    places = tmp_path / "checkpoints"
    kill_when(run, lambda: (places / "000001").exists() and (places / "partial").exists())
    assert run.returncode in (-signal.SIGKILL, 0)  # a busy machine may notice too late
    main("learners.appo", arguments(taught, tmp_path))
    same_numbers(undisturbed, tmp_path)
    same_totals(tmp_path)
    assert sorted(p.name for p in places.iterdir()) == ["000002", "000003"]


MOMENTS = {
    "before the first checkpoint": lambda folder: (folder / "metrics.jsonl").exists(),
    "after metrics, before their checkpoint": lambda folder: (
        (folder / "metrics.jsonl").exists() and len(metrics_of(folder)) == 2
    ),
    "right after a checkpoint": lambda folder: (folder / "checkpoints" / "000001").exists(),
    "after the last checkpoint": lambda folder: (folder / "checkpoints" / "000003").exists(),
}


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_run_killed_at_a_bad_moment_ends_with_the_same_numbers(
    taught, undisturbed, tmp_path, moment
):
    kill_when(start(taught, tmp_path), lambda: MOMENTS[moment](tmp_path))
    main("learners.appo", arguments(taught, tmp_path))
    same_numbers(undisturbed, tmp_path)
    same_totals(tmp_path)


@pytest.mark.slow
@pytest.mark.full
@pytest.mark.parametrize("seed", range(3))
def test_a_run_killed_again_and_again_ends_with_the_same_numbers(
    taught, undisturbed, tmp_path, seed
):
    """Three kills, each up to two seconds after the run began to write."""
    draw = random.Random(seed)
    for _ in range(3):
        run = start(taught, tmp_path)
        begun, wait = time.time(), draw.uniform(0, 2)

        def ready(begun=begun, wait=wait):
            written = tmp_path / "metrics.jsonl"
            return written.exists() and time.time() > max(written.stat().st_mtime, begun) + wait

        kill_when(run, ready)
    main("learners.appo", arguments(taught, tmp_path))
    same_numbers(undisturbed, tmp_path)
    same_totals(tmp_path)


@pytest.mark.slow
def test_an_interrupted_run_says_how_to_resume(taught, undisturbed, tmp_path):
    """A long run, so that it is not over before the signal comes."""
    longer = ["--iterations", "500"]
    # Where the tests run in the background, what they start would ignore the signal.
    heard = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    run = start(taught, tmp_path, longer, preexec_fn=heard)
    # Two are kept, and an iteration may be over in no time: no name is sure to be seen.
    begun = (tmp_path / "checkpoints").glob
    said = kill_when(run, lambda: any(p.name >= "000002" for p in begun("0*")), signal.SIGINT)
    assert run.returncode == 130, said
    command = " ".join([*arguments(taught, tmp_path), *longer])
    assert f"Stopped. The run is resumable: python -m learners.appo {command}" in said
    assert "Traceback" not in said
    done = max(int(p.name) for p in (tmp_path / "checkpoints").glob("0*"))
    main("learners.appo", [*arguments(taught, tmp_path), "--iterations", str(done + 1)])
    assert metrics_of(tmp_path)[:ITERATIONS] == metrics_of(undisturbed)
    assert len(metrics_of(tmp_path)) == done + 1


@pytest.mark.slow
def test_a_disk_that_is_full_at_a_checkpoint_leaves_the_one_before(taught, undisturbed, tmp_path):
    """Files may not grow beyond a megabyte here: the weights alone are larger."""
    one = [*arguments(taught, tmp_path), "--iterations", "1"]
    main("learners.appo", one)
    whole = (tmp_path / "checkpoints" / "000001" / "model.safetensors").read_bytes()

    def small_disk():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))

    run = start(taught, tmp_path, preexec_fn=small_disk)
    said = run.communicate(timeout=240)[0]
    assert run.returncode == 2, said
    words = " ".join(said.split())
    assert f"no space left for checkpoint 2 in {tmp_path}" in words
    assert "run the same command: it resumes from checkpoint 1." in words
    assert "Traceback" not in said
    places = tmp_path / "checkpoints"
    assert [p.name for p in places.iterdir()] == ["000001"]
    assert (places / "000001" / "model.safetensors").read_bytes() == whole
    main("learners.appo", arguments(taught, tmp_path))
    same_numbers(undisturbed, tmp_path)


def refused(method, given, capsys):
    """What a command says when it exits with 2."""
    with pytest.raises(SystemExit) as ended:
        main(method, given)
    assert ended.value.code == 2
    return " ".join(capsys.readouterr().err.split())


def times_of(folder):
    """When each file was written, but for the lock."""
    return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.name != ".lock"}


def test_a_folder_of_another_run_is_refused_with_what_differs(taught, undisturbed, capsys):
    before = times_of(undisturbed)
    given = [*arguments(taught, undisturbed), "--seed", "7", "--prompts", "2"]
    said = refused("learners.appo", given, capsys)
    assert f"RunFolderError: {undisturbed} holds another run: " in said
    assert "prompts was 3, now 2, seed was 0, now 7." in said
    assert "Give --out another folder, or the arguments of that run to resume it." in said
    assert times_of(undisturbed) == before


def test_a_folder_of_another_method_is_refused(taught, undisturbed, capsys):
    given = f"--model {taught} --out {undisturbed}".split()
    said = refused("learners.grpo", given, capsys)
    assert "method was 'learners.appo', now 'learners.grpo'" in said


def test_a_finished_run_is_only_reported_again(taught, undisturbed, capsys):
    before = metrics_of(undisturbed)
    main("learners.appo", arguments(taught, undisturbed))
    said = " ".join(capsys.readouterr().out.split())
    assert "resuming after iteration 3" in said
    assert "cost of 3 iterations" in said
    assert metrics_of(undisturbed) == before


def test_a_run_that_resumes_on_another_machine_says_so(taught, undisturbed, tmp_path, capsys):
    """Its folder lists the machines; with other threads the last bits may differ."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    (machine,) = json.loads((tmp_path / "machine.json").read_text())
    assert machine["iteration"] == 0
    assert machine["threads"] >= 1
    assert machine["processor"]
    main("learners.appo", arguments(taught, tmp_path))
    assert "last bits" not in capsys.readouterr().out
    moved = {**machine, "threads": machine["threads"] + 62}
    (tmp_path / "machine.json").write_text(json.dumps([moved]))
    main("learners.appo", arguments(taught, tmp_path))
    said = " ".join(capsys.readouterr().out.split())
    now = machine["threads"]
    assert f"threads was {now + 62}, now {now}: from here on numbers may differ in their" in said
    first, second = json.loads((tmp_path / "machine.json").read_text())
    assert (first, second) == (moved, {**machine, "iteration": 3})


def test_a_command_that_failed_before_it_began_does_not_claim_its_folder(taught, tmp_path, capsys):
    """A wrong --model, then the right one into the same folder."""
    said = refused("learners.appo", arguments(tmp_path / "none", tmp_path), capsys)
    assert "there is no such folder" in said
    main("learners.appo", [*arguments(taught, tmp_path), "--iterations", "1"])
    assert len(metrics_of(tmp_path)) == 1


def test_a_folder_that_cannot_be_written_is_refused(taught, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    said = refused("learners.appo", arguments(taught, tmp_path / "file"), capsys)
    assert f"{tmp_path}/file cannot be written: File exists." in said
    assert os.listdir(tmp_path) == ["file"]


def test_work_that_is_done_again_is_counted_as_lost(taught, undisturbed, tmp_path):
    """The last checkpoint is gone: the third iteration and the evaluation after it are redone.

    Lost is what both had cost.
    """
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    assert not any("ledger/lost_tokens" in line for line in lines_of(tmp_path))
    same_totals(tmp_path)
    (tmp_path / "evaluation-after.json").unlink()
    shutil.rmtree(tmp_path / "checkpoints" / "000003")
    undone = lines_of(tmp_path)[2]
    evaluation = json.loads((undisturbed / "evaluation-after.json").read_text())
    main("learners.appo", arguments(taught, tmp_path))
    same_numbers(undisturbed, tmp_path)
    same_totals(tmp_path)
    again = lines_of(tmp_path)[2]
    for name, lost in (("sampled_tokens", "lost_tokens"), ("tool_calls", "lost_calls")):
        wanted = undone[f"ledger/{name}"] + evaluation.get(f"ledger/{name}", 0)
        assert again[f"ledger/{lost}"] == wanted


def test_two_processes_cannot_write_one_run(taught, tmp_path, capsys):
    """Until the first is killed: then its lock is gone and the run goes on."""
    run = start(taught, tmp_path, ["--iterations", "500"])
    try:
        while not (tmp_path / "metrics.jsonl").exists():
            assert run.poll() is None, run.communicate()[0]
            time.sleep(0.01)
        said = refused("learners.appo", arguments(taught, tmp_path), capsys)
    finally:
        run.kill()
        run.communicate()
    assert f"RunFolderError: process {run.pid} writes a run into {tmp_path};" in said
    assert "wait for it, stop it, or give --out another folder" in said
    done = len(list((tmp_path / "checkpoints").glob("0*"))) + 1
    main("learners.appo", [*arguments(taught, tmp_path), "--iterations", str(done)])
    assert len(metrics_of(tmp_path)) >= done


def test_a_folder_of_an_earlier_version_is_resumed(taught, undisturbed, tmp_path, capsys):
    """Its config lacks a field that came later; what it did then is that field's default."""
    shutil.copytree(undisturbed, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text())
    config["out"] = str(tmp_path)
    for name in ("search", "prices", "run_calls"):
        del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    main("learners.appo", arguments(taught, tmp_path))
    assert "resuming after iteration 3" in " ".join(capsys.readouterr().out.split())
    (tmp_path / "config.json").write_text(json.dumps(config))
    said = refused("learners.appo", [*arguments(taught, tmp_path), "--search", "web"], capsys)
    assert "search was 'auto', now 'web'" in said


def test_a_run_stops_when_its_calls_are_spent_and_goes_on_with_more(
    taught, undisturbed, tmp_path, capsys
):
    """One call fewer than the whole run makes: the last evaluation or iteration is not finished.

    What it had cost is told once, also where the run is then made longer and evaluates anew.
    """
    needed = json.loads((undisturbed / "spent.json").read_text())["tool_calls"]
    assert needed > 1
    given = [*arguments(taught, tmp_path), "--run-calls"]
    said = refused("learners.appo", [*given, str(needed - 1)], capsys)
    assert f"RunStopped: the {needed - 1} tool calls of --run-calls are spent; give more" in said
    assert json.loads((tmp_path / "spent.json").read_text())["tool_calls"] == needed - 1
    main("learners.appo", [*given, str(3 * needed)])
    same_numbers(undisturbed, tmp_path)
    same_totals(tmp_path)
    main("learners.appo", [*given, str(3 * needed)])  # finished: nothing is told twice
    same_totals(tmp_path)
    main("learners.appo", [*given, str(3 * needed), "--iterations", str(ITERATIONS + 1)])
    same_totals(tmp_path)
