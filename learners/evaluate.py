"""Evaluate a model on environments: scores with intervals, resumable, graded again at will.

The model is one of `learners.models`, played exactly as in training, or any model behind an
OpenAI-compatible endpoint. The folder holds config.json, per environment an `.episodes.jsonl`
(what was played) and a `.graded.jsonl` (what it is worth), and results.json.
"""

import json
import random
import sys
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.command_line import explained
from learners.evaluate_config import Config

if TYPE_CHECKING:
    from benchmarks import Task
    from envs import ToolEnv
    from learners.grading import Verdict
    from learners.ledger import Ledger
    from learners.players import Player
    from learners.progress import Narrator

METHOD = "learners.evaluate"
WIDTH = 150
"""Columns of the table where no terminal says otherwise."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and evaluate."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    description = (__doc__ or "").split("\n\n")[0]
    config = tyro.cli(Config, args=arguments, prog=f"python -m {METHOD}", description=description)
    with explained(METHOD, arguments, "evaluation"):
        evaluate(config)


def evaluate(config: Config) -> dict[str, Any]:
    """Play what is missing, grade everything, write results.json, print the table.

    Returns:
        What results.json holds.

    Raises:
        The errors that `main` explains; what was played until then is stored.
    """
    from learners.checkpoint import write_text
    from learners.evaluate_folder import opened
    from learners.players import player_of
    from learners.progress import Narrator
    from learners.results_table import about, results_table

    folder = Path(config.out or f"runs/evaluate-{Path(config.model).name}")
    narrator = Narrator()
    with opened(folder, config) as config:
        environments = [environment(name, config) for name in chosen(config)]
        player = None if config.regrade else player_of(config)
        ledger = judge_ledger(config, folder)
        found: dict[str, Any] = {}
        for env in environments:
            name = f"appo/{env.benchmark.name}-v0"
            found[name] = evaluated(env, player, config, folder, narrator, ledger)
            results = {**about(config, player, folder, ledger.spending), "environments": found}
            write_text(folder / "results.json", json.dumps(results, indent=1))
    if not narrator.console.is_terminal:
        narrator.console.width = WIDTH
    narrator.say(results_table(results))
    narrator.say(f"files: {folder}/results.json, *.episodes.jsonl, *.graded.jsonl")
    return results


def chosen(config: Config) -> list[str]:
    """The ids to evaluate on.

    Raises:
        UsageError: none is named, or there is nothing to play.
    """
    from benchmarks import BENCHMARKS
    from learners.run_config import UsageError

    if config.samples < 1 or (config.tasks is not None and config.tasks < 1):
        raise UsageError("--tasks and --samples count from 1")
    if config.all:
        return [f"appo/{name}-v0" for name in BENCHMARKS if name != "SyntheticQA"]
    if not config.env:
        raise UsageError("name environments with --env, or all thirteen benchmarks with --all")
    return list(dict.fromkeys(config.env))


def environment(name: str, config: Config) -> "ToolEnv":
    """The environment of an id; opens nothing.

    Raises:
        gymnasium.error.Error: no such id; the message names the nearest.
        UsageError: it is no environment of ours.
    """
    import gymnasium as gym

    import envs
    from learners.calibration import REQUEST
    from learners.run_config import UsageError

    if not isinstance(gym.make(name).unwrapped, envs.ToolEnv):
        raise UsageError(f"--env {name} is not one of ours; expected appo/<Benchmark>-v0")
    options = ("split", "data_dir", "tools", "search", "corpus", "cache", "cache_mode", "sandbox")
    given = {option: getattr(config, option) for option in (*options, "max_tool_calls", "level")}
    env = gym.make(name, **given).unwrapped
    assert isinstance(env, envs.ToolEnv)
    if config.confidence:
        asked = f"{env.benchmark.instructions}\n\n{REQUEST}".strip()
        env.benchmark = replace(env.benchmark, instructions=asked)
    return env


def evaluated(
    env: "ToolEnv",
    player: "Player | None",
    config: Config,
    folder: Path,
    narrator: "Narrator",
    ledger: "Ledger",
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
    from learners.episodes import Episode, EpisodeFile, Job, missing
    from learners.grading import grade_all, summary
    from learners.judging import judged, spent_on_judging

    benchmark, tasks = env.benchmark, drawn(env.tasks, config.tasks)
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
        verdicts = grade_all(judged(benchmark, config, folder, ledger), by_id, episodes)
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


def counts(env: "ToolEnv", config: Config) -> dict[str, int]:
    """Tasks of the split, and what happened to the rows that are none."""
    from benchmarks import TaskList

    loaded = env.benchmark.load(config.split, env.data_dir)
    left_out = dict(loaded.counts) if isinstance(loaded, TaskList) else {}
    return {"tasks": len(env.tasks), **left_out}


def drawn(tasks: "Sequence[Task]", count: int | None) -> "list[Task]":
    """So many tasks, the same for everyone; a larger draw holds the smaller one."""
    order = list(range(len(tasks)))
    random.Random("evaluation").shuffle(order)
    return [tasks[index] for index in sorted(order[: len(order) if count is None else count])]


def judge_ledger(config: Config, folder: Path) -> "Ledger":
    """The ledger of an evaluation's judge; its totals lie in the folder, over all processes."""
    from learners.ledger import Ledger
    from learners.spending import JUDGE, Budget, Spending

    prices = ((JUDGE, config.judge_price),) if config.judge_price else ()
    return Ledger(Spending(Budget(prices=prices), folder / "spent.json"))


def write_verdicts(path: Path, verdicts: "Sequence[Verdict]") -> None:
    """One line per episode, in the order of the tasks; replaces the file as a whole."""
    from learners.checkpoint import write_text

    lines = [json.dumps(asdict(verdict), ensure_ascii=False) for verdict in verdicts]
    write_text(path, "".join(line + "\n" for line in lines))


if __name__ == "__main__":
    main()
