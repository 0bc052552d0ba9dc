"""Trials as child processes, a few at a time; what is done already is not started again."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks import sample_tasks
from learners.compare.config import Config
from learners.compare.plan import Trial
from learners.compare.summary import read_summary, write_summary
from learners.errors import RunStopped, UsageError
from learners.evaluate import Config as Evaluation
from learners.evaluate import make_environment
from learners.run_folder import write_text

TOLD = 12
"""Last lines of what a child said that are shown when it failed."""


class TrialFailed(RunStopped):
    """A child ended with an error; the message holds its last words."""


class Children:
    """Processes under way. Mutated by `run` and `stop`, from several threads."""

    def __init__(self) -> None:
        self._lock, self._alive, self._stopped = (
            threading.Lock(),
            set[subprocess.Popen[bytes]](),
            False,
        )

    def run(self, command: Sequence[str], log: Path) -> None:
        """Run a command to its end; what it says is appended to the log.

        Raises:
            TrialFailed: it ended with an error, or was stopped.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as said:
            with self._lock:
                if self._stopped:
                    raise TrialFailed("stopped before it began")
                child = subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT)
                self._alive.add(child)
            status = child.wait()
            with self._lock:
                self._alive.discard(child)
        if status:
            last = log.read_text("utf-8", errors="replace").rstrip().splitlines()[-TOLD:]
            raise TrialFailed(
                "\n".join([f"ended with {status}: {' '.join(command)}", *last, f"log: {log}"])
            )

    def stop(self) -> None:
        """Interrupt what runs, as Ctrl-C does, and start nothing more."""
        with self._lock:
            self._stopped = True
            for child in self._alive:
                child.send_signal(signal.SIGINT)


def run_all(
    trials: Sequence[Trial],
    tasks: Mapping[str, Any],
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Run the trials that have no summary yet.

    Args:
        trials: in the order they are begun.
        tasks: what tasks.json holds.
        jobs: how many at a time.
        say: called with a line for every trial that ends.

    Returns:
        Why trials failed, by their titles; the others have summaries.
    """
    todo = [trial for trial in trials if read_summary(trial.summary) is None]
    if len(todo) < len(trials):
        say(f"{len(trials) - len(todo)} of {len(trials)} have their summary already")
    children, failed = Children(), dict[str, str]()
    with ThreadPoolExecutor(jobs) as pool:
        waiting = {pool.submit(_run, trial, tasks, jobs, children): trial for trial in todo}
        try:
            for count, future in enumerate(as_completed(waiting), 1):
                trial, error = waiting[future], future.exception()
                if isinstance(error, TrialFailed):
                    failed[trial.title] = str(error)
                elif error is not None:
                    raise error
                ended = "failed" if error else _described(trial)
                say(f"{count}/{len(todo)}  {trial.title}: {ended}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
    return failed


def _run(trial: Trial, tasks: Mapping[str, Any], jobs: int, children: Children) -> None:
    log = trial.folder.parent / "logs" / f"{trial.folder.name}.log"
    if trial.train:
        children.run(trial.train, log)
        check_run(trial)
    for command in trial.evaluations:
        children.run(command, log)
    write_summary(trial, tasks, jobs)


def check_run(trial: Trial) -> None:
    """Check that the training command of a trial made a run of its method.

    A module without its last lines does nothing and succeeds; one whose lines were copied from
    another method trains that one.

    Raises:
        TrialFailed: it did not.
    """
    path, module = trial.folder / "config.json", trial.method.module
    method = json.loads(path.read_text())["method"] if path.exists() else None
    if method != module:
        outcome = "made no run" if method is None else f"made a run of {method}"
        raise TrialFailed(
            f"python -m {module} {outcome}: the module must end with the lines "
            f'if __name__ == "__main__": main("{module}"), as learners/grpo.py does'
        )


def _described(trial: Trial) -> str:
    found = read_summary(trial.summary)
    assert found is not None, "a trial that is done has a summary"
    spent_tokens = found["spent"]["tokens"]
    return (
        f"{spent_tokens:,.0f} tokens in {found['spent']['seconds']:,.0f} s"
        if trial.train
        else "done"
    )


def start_is_there(config: Config) -> bool:
    """Whether the model that all runs begin with can be read; a name may be on a hub."""
    place = Path(config.model)
    if config.start:
        return (place / "summary.json").exists()
    return place.exists() or not config.model.startswith(("runs/", "/", "."))


def make_start(
    command: Sequence[str], config: Config, folder: Path, say: Callable[[str], None]
) -> None:
    """Cold-start the model that all runs begin with, unless it is there.

    Raises:
        UsageError: it is not there, and nothing says how it is made.
        TrialFailed: making it failed.
    """
    if start_is_there(config):
        return
    if not command:
        raise UsageError(
            f"--model {config.model}: there is no such folder; make it with learners.sft, or say "
            "how with --start"
        )
    say(f"making {config.model}")
    Children().run(command, folder / "logs" / "start.log")


TASKS = "tasks.json"


def evaluated_tasks(config: Config) -> dict[str, Any]:
    """Ids and levels of the tasks of both splits, in the order of all scores; loads no model."""
    found = {}
    for split, count in (("test", config.eval_tasks), ("validation", config.validation_tasks)):
        given = Evaluation(
            split=split,  # type: ignore[arg-type]
            data_dir=config.data_dir,
            level=config.level,
        )
        chosen = sample_tasks(make_environment(config.env, given).tasks, count)
        levels = [str(dict(task.metadata).get("level", "")) for task in chosen]
        found[split] = {"ids": [task.id for task in chosen], "levels": levels}
    return found


def keep_tasks(config: Config) -> dict[str, Any]:
    """The tasks of a comparison, written beside its summaries.

    Raises:
        UsageError: the summaries there are of other tasks.
    """
    path = Path(config.results) / config.name / TASKS
    tasks = evaluated_tasks(config)
    if path.exists():
        if json.loads(path.read_text()) != tasks:
            raise UsageError(f"{path} names other tasks: give --name another name, or delete it")
        return tasks
    path.parent.mkdir(parents=True, exist_ok=True)
    body = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in tasks.items())
    write_text(path, "{\n" + body + "\n}\n")
    return tasks
