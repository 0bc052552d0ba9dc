"""Evaluate a model on environments: scores with intervals, resumable, graded again at will.

The model is one of `learners.policy.loading`, which plays exactly as in training, or any model
behind an OpenAI-compatible endpoint. The folder holds config.json, for each environment an
`.episodes.jsonl` (what was played) and a `.graded.jsonl` (its scores), and results.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import TaskList, sample_tasks
from envs import ToolEnv
from learners.console import Console, parse_options, report_errors
from learners.evaluate.config import Config, make_environment, open_folder
from learners.evaluate.episodes import Episode, EpisodeFile, Job, missing_jobs
from learners.evaluate.grading import Verdict, grade_all, summarise
from learners.evaluate.results import (
    RESULTS_FILE,
    EnvironmentResults,
    Results,
    describe_backend,
    describe_judge,
    installed_versions,
    stored_backend,
)
from learners.evaluate.tables import results_table
from learners.ledger import JUDGE, Budget, Ledger, RunUsage, extract_judge_usage
from learners.run_folder import write_text

if TYPE_CHECKING:
    from learners.evaluate.backends import Backend

METHOD = "learners.evaluate"

WIDTH = 150
"""Columns of the table if the output is not a terminal."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    arguments = sys.argv[1:] if arguments is None else arguments
    config = parse_options(METHOD, Config(), arguments, __doc__)
    with report_errors(METHOD, arguments, "evaluation"):
        evaluate(config)


def evaluate(config: Config) -> Results:
    """Play what is missing, grade everything, write results.json, print the table.

    Raises:
        The errors that `main` explains; what was played until then is stored.
    """
    from learners.evaluate.backends import open_backend  # loads torch, which --help does without

    folder = Path(config.out or f"runs/evaluate-{Path(config.model).name}")
    console = Console()
    with open_folder(folder, config) as config:
        environments = [make_environment(name, config) for name in config.environments]
        backend = None if config.regrade else open_backend(config)
        ledger = judge_ledger(config, folder)
        done: dict[str, EnvironmentResults] = {}
        for env in environments:
            name = f"appo/{env.benchmark.name}-v0"
            done[name] = evaluate_environment(env, backend, config, folder, console, ledger)
            info = stored_backend(folder) if backend is None else None
            left_out = frozenset[str]() if backend is None else backend.left_out
            results = Results(
                backend=info or describe_backend(config, left_out),
                judge=describe_judge(config, ledger.usage),
                versions=installed_versions(),
                environments=done,
            )
            write_text(folder / RESULTS_FILE, json.dumps(results.to_json(), indent=1))
    console.set_plain_width(WIDTH)
    console.say(results_table(results))
    console.say(f"files: {folder}/{RESULTS_FILE}, *.episodes.jsonl, *.graded.jsonl")
    return results


def evaluate_environment(
    env: ToolEnv,
    backend: Backend | None,
    config: Config,
    folder: Path,
    console: Console,
    ledger: Ledger,
) -> EnvironmentResults:
    """Play what is missing of one environment, and grade it.

    Args:
        env: closed at the end.
        backend: None: grade only.
        config: of the evaluation.
        folder: of episodes and verdicts.
        console: shows progress.
        ledger: counts what the judge is asked.
    """
    from learners.runs import add_judge  # loads torch, which --help does without

    benchmark, tasks = env.benchmark, sample_tasks(env.tasks, config.tasks)
    restricted = frozenset(task.id for task in tasks if task.restricted)
    file = EpisodeFile(folder / f"{benchmark.name}.episodes.jsonl", restricted)
    jobs = [Job(task, sample) for sample in range(config.samples) for task in tasks]
    max_tokens = config.max_response_tokens or benchmark.max_response_tokens
    if backend is not None:
        play_missing(env, backend, jobs, max_tokens, file, console)
    played = file.read()
    keys = [(job.task.id, job.sample) for job in jobs]
    episodes = [played[key] for key in keys if key in played]
    by_id = {task.id: task for task in tasks}
    with console.status(f"grading {benchmark.name}"):
        verdicts = grade_all(add_judge(benchmark, config.judge, folder, ledger), by_id, episodes)
    write_verdicts(folder / f"{benchmark.name}.graded.jsonl", verdicts)
    return EnvironmentResults(
        split=config.split,
        revision=benchmark.revision,
        official_metric=benchmark.score.__name__,
        training_metric=benchmark.training_score.__name__,
        tools=[tag[2:-1] for tag in env.stop_tags if tag != "</answer>"],
        max_tool_calls=env.max_tool_calls,
        max_response_tokens=max_tokens,
        rows=count_rows(env, config),
        grades=summarise(verdicts),
        judge=None if config.judge_base is None else extract_judge_usage(ledger.take()),
    )


def play_missing(
    env: ToolEnv,
    backend: Backend,
    jobs: Sequence[Job],
    max_tokens: int,
    file: EpisodeFile,
    console: Console,
) -> None:
    """Play the jobs that have no episode in the file yet, and close the environment."""
    todo = missing_jobs(jobs, file.read())
    with console.bar(env.benchmark.name, len(jobs), len(jobs) - len(todo)) as advance:

        def store(episode: Episode) -> None:
            file.append(episode)
            advance(episode.stop or f"error: {episode.error}")

        try:
            if todo:
                backend.play(env, todo, max_tokens, store)
        finally:
            env.close()


def count_rows(env: ToolEnv, config: Config) -> dict[str, int]:
    """Count the tasks of the split, and the rows that became none, by reason."""
    loaded = env.benchmark.load(config.split, env.data_dir)
    counts = dict(loaded.counts) if isinstance(loaded, TaskList) else {}
    return {"tasks": len(env.tasks), **counts}


def judge_ledger(config: Config, folder: Path) -> Ledger:
    """Open the ledger of the judge; the folder keeps its totals over all processes."""
    prices = ((JUDGE, config.judge_price),) if config.judge_price else ()
    return Ledger(RunUsage(Budget(prices=prices), folder / "spent.json"))


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """Write a line for each episode, in the order of the tasks; replaces the file."""
    lines = [json.dumps(asdict(verdict), ensure_ascii=False) for verdict in verdicts]
    write_text(path, "".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
