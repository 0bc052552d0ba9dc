"""Evaluate a model on environments: scores with intervals, resumable, graded again at will.

The model is one of `learners.policy.loading`, played exactly as in training, or any model behind an
OpenAI-compatible endpoint. The folder holds config.json, per environment an `.episodes.jsonl`
(what was played) and a `.graded.jsonl` (what it is worth), and results.json.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import sample_tasks
from envs import ToolEnv
from learners.console import Console, report_errors
from learners.evaluate.config import Config
from learners.evaluate.grading import Verdict
from learners.ledger import Ledger

if TYPE_CHECKING:
    from learners.evaluate.players import Player

METHOD = "learners.evaluate"


WIDTH = 150
"""Columns of the table where no terminal says otherwise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    description = (__doc__ or "").split("\n\n")[0]
    config = tyro.cli(Config, args=arguments, prog=f"python -m {METHOD}", description=description)
    with report_errors(METHOD, arguments, "evaluation"):
        evaluate(config)


def evaluate(config: Config) -> dict[str, Any]:
    """Play what is missing, grade everything, write results.json, print the table.

    Returns:
        What results.json holds.

    Raises:
        The errors that `main` explains; what was played until then is stored.
    """
    from learners.console import Console
    from learners.evaluate.config import make_environment, opened
    from learners.evaluate.players import player_of
    from learners.evaluate.tables import about, results_table
    from learners.run_folder import write_text

    folder = Path(config.out or f"runs/evaluate-{Path(config.model).name}")
    narrator = Console()
    with opened(folder, config) as config:
        environments = [make_environment(name, config) for name in chosen(config)]
        player = None if config.regrade else player_of(config)
        ledger = judge_ledger(config, folder)
        found: dict[str, Any] = {}
        for env in environments:
            name = f"appo/{env.benchmark.name}-v0"
            found[name] = evaluated(env, player, config, folder, narrator, ledger)
            left_out = None if player is None else player.left_out
            origin = about(config, left_out, folder, ledger.spending)
            results = {**origin, "environments": found}
            write_text(folder / "results.json", json.dumps(results, indent=1))
    narrator.set_plain_width(WIDTH)
    narrator.say(results_table(results))
    narrator.say(f"files: {folder}/results.json, *.episodes.jsonl, *.graded.jsonl")
    return results


def chosen(config: Config) -> list[str]:
    """The ids to evaluate on.

    Raises:
        UsageError: none is named, or there is nothing to play.
    """
    from benchmarks import BENCHMARKS
    from learners.errors import UsageError

    if config.samples < 1 or (config.tasks is not None and config.tasks < 1):
        raise UsageError("--tasks and --samples count from 1")
    if config.all:
        return [f"appo/{name}-v0" for name in BENCHMARKS if name != "SyntheticQA"]
    if not config.env:
        raise UsageError("name environments with --env, or all thirteen benchmarks with --all")
    return list(dict.fromkeys(config.env))


def evaluated(
    env: ToolEnv,
    player: Player | None,
    config: Config,
    folder: Path,
    narrator: Console,
    ledger: Ledger,
) -> dict[str, Any]:
    """Play what is missing of one environment and grade it; its part of results.json.

    Args:
        env: closed at the end.
        player: None grades only.
        config: of the evaluation.
        folder: where episodes and verdicts lie.
        narrator: shows how far it is.
        ledger: counts what the judge is asked.
    """
    from learners.evaluate.episodes import Episode, EpisodeFile, Job, missing
    from learners.evaluate.grading import grade_all, summary
    from learners.ledger import spent_on_judging
    from learners.runs import add_judge

    benchmark, tasks = env.benchmark, sample_tasks(env.tasks, config.tasks)
    restricted = frozenset(task.id for task in tasks if task.restricted)
    file = EpisodeFile(folder / f"{benchmark.name}.episodes.jsonl", restricted)
    jobs = [Job(task, sample) for sample in range(config.samples) for task in tasks]
    if player is not None:
        todo = missing(jobs, file.read())
        with narrator.bar(benchmark.name, len(jobs), len(jobs) - len(todo)) as advance:

            def keep(episode: Episode) -> None:
                file.keep(episode)
                advance(episode.stop or f"error: {episode.error}")

            try:
                if todo:
                    most = config.max_response_tokens or benchmark.max_response_tokens
                    player.play(env, todo, most, keep)
            finally:
                env.close()
    played = file.read()
    wanted = [(job.task.id, job.sample) for job in jobs]
    episodes = [played[key] for key in wanted if key in played]
    by_id = {task.id: task for task in tasks}
    with narrator.status(f"grading {benchmark.name}"):
        verdicts = grade_all(add_judge(benchmark, config.judge, folder, ledger), by_id, episodes)
    write_verdicts(folder / f"{benchmark.name}.graded.jsonl", verdicts)
    return {
        "split": config.split,
        "revision": benchmark.revision,
        "official_metric": benchmark.score.__name__,
        "training_metric": benchmark.training_score.__name__,
        "tools": [tag[2:-1] for tag in env.stop_tags if tag != "</answer>"],
        "max_tool_calls": env.max_tool_calls,
        "max_response_tokens": config.max_response_tokens or benchmark.max_response_tokens,
        "rows": counts(env, config),
        **summary(verdicts),
        **({} if config.judge_base is None else {"judge": spent_on_judging(ledger.take())}),
    }


def counts(env: ToolEnv, config: Config) -> dict[str, int]:
    """Tasks of the split, and what happened to the rows that are none."""
    from benchmarks import TaskList

    loaded = env.benchmark.load(config.split, env.data_dir)
    left_out = dict(loaded.counts) if isinstance(loaded, TaskList) else {}
    return {"tasks": len(env.tasks), **left_out}


def judge_ledger(config: Config, folder: Path) -> Ledger:
    """The ledger of an evaluation's judge; its totals lie in the folder, over all processes."""
    from learners.ledger import JUDGE, Budget, Ledger, Spending

    prices = ((JUDGE, config.judge_price),) if config.judge_price else ()
    return Ledger(Spending(Budget(prices=prices), folder / "spent.json"))


def write_verdicts(path: Path, verdicts: Sequence[Verdict]) -> None:
    """One line per episode, in the order of the tasks; replaces the file as a whole."""
    from learners.run_folder import write_text

    lines = [json.dumps(asdict(verdict), ensure_ascii=False) for verdict in verdicts]
    write_text(path, "".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
