"""Runs trials as child processes, several at a time; a trial with a summary is not run again."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from benchmarks import sample_tasks
from learners.compare.config import Config
from learners.compare.plan import Trial
from learners.compare.summary import SplitTasks, Tasks, read_summary, write_summary
from learners.errors import RunStopped, UsageError
from learners.evaluate import Config as EvaluationConfig
from learners.evaluate import make_environment
from learners.run_folder import write_text

LOG_TAIL = 12
"""Last lines of a child's output that are shown if it fails."""

TASKS_FILE = "tasks.json"


class TrialFailed(RunStopped):
    """A child process failed; the message holds the end of its output."""


class ChildProcesses:
    """Processes that are running. Mutated by `run` and `stop`, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(self, command: Sequence[str], log: Path) -> None:
        """Run a command to its end and append its output to the log.

        Raises:
            TrialFailed: it failed, or was stopped.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise TrialFailed("stopped before it began")
                child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
                self._running.add(child)
            status = child.wait()
            with self._lock:
                self._running.discard(child)
        if status:
            tail = log.read_text("utf-8", errors="replace").rstrip().splitlines()[-LOG_TAIL:]
            raise TrialFailed(
                "\n".join([f"ended with {status}: {' '.join(command)}", *tail, f"log: {log}"])
            )

    def stop(self) -> None:
        """Interrupt all running processes, as Ctrl-C does, and start no others."""
        with self._lock:
            self._stopped = True
            for child in self._running:
                child.send_signal(signal.SIGINT)


def run_all(
    trials: Sequence[Trial],
    tasks: Tasks,
    jobs: int,
    say: Callable[[str], None],
) -> dict[str, str]:
    """Run the trials that have no summary yet.

    Args:
        trials: started in this order.
        tasks: of the comparison.
        jobs: trials at the same time.
        say: called with a line for every trial that ends.

    Returns:
        Reasons of the trials that failed, by title; the others have a summary now.
    """
    todo = [trial for trial in trials if read_summary(trial.summary) is None]
    if len(todo) < len(trials):
        say(f"{len(trials) - len(todo)} of {len(trials)} have their summary already")
    children, failures = ChildProcesses(), dict[str, str]()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(_run, trial, tasks, jobs, children): trial for trial in todo}
        try:
            for count, future in enumerate(as_completed(futures), 1):
                trial, error = futures[future], future.exception()
                if isinstance(error, TrialFailed):
                    failures[trial.title] = str(error)
                elif error is not None:
                    raise error
                outcome = "failed" if error else _describe_outcome(trial)
                say(f"{count}/{len(todo)}  {trial.title}: {outcome}")
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            children.stop()
    return failures


def _run(trial: Trial, tasks: Tasks, jobs: int, children: ChildProcesses) -> None:
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


def _describe_outcome(trial: Trial) -> str:
    summary = read_summary(trial.summary)
    assert summary is not None, "a trial that is done has a summary"
    tokens, seconds = summary["spent"]["tokens"], summary["spent"]["seconds"]
    return f"{tokens:,.0f} tokens in {seconds:,.0f} s" if trial.train else "done"


def start_exists(config: Config) -> bool:
    """Return True if the model that all runs start from can be read, perhaps from a hub."""
    folder = Path(config.model)
    if config.start:
        return (folder / "summary.json").exists()
    return folder.exists() or not config.model.startswith(("runs/", "/", "."))


def make_start(
    command: Sequence[str], config: Config, folder: Path, say: Callable[[str], None]
) -> None:
    """Make the model that all runs start from, unless it exists.

    Raises:
        UsageError: it does not exist, and there is no command that makes it.
        TrialFailed: the command failed.
    """
    if start_exists(config):
        return
    if not command:
        raise UsageError(
            f"--model {config.model}: there is no such folder; make it with learners.sft, or give "
            "the options of learners.sft with --start"
        )
    say(f"making {config.model}")
    ChildProcesses().run(command, folder / "logs" / "start.log")


def list_tasks(config: Config) -> dict[str, SplitTasks]:
    """List the tasks that are evaluated, by split; loads no model."""
    tasks: dict[str, SplitTasks] = {}
    for split, count in (("test", config.eval_tasks), ("validation", config.validation_tasks)):
        evaluation = EvaluationConfig(
            split=split,  # type: ignore[arg-type]
            data_dir=config.data_dir,
            level=config.level,
        )
        chosen = sample_tasks(make_environment(config.env, evaluation).tasks, count)
        levels = [str(dict(task.metadata).get("level", "")) for task in chosen]
        tasks[split] = {"ids": [task.id for task in chosen], "levels": levels}
    return tasks


def store_tasks(config: Config) -> dict[str, SplitTasks]:
    """Write the tasks of a comparison next to its summaries, and return them.

    Raises:
        UsageError: the summaries that exist are of other tasks.
    """
    path = Path(config.results) / config.name / TASKS_FILE
    tasks = list_tasks(config)
    if path.exists():
        if json.loads(path.read_text()) != tasks:
            raise UsageError(f"{path} names other tasks: give --name another name, or delete it")
        return tasks
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in tasks.items())
    write_text(path, "{\n" + lines + "\n}\n")
    return tasks
