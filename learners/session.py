"""A training session: environment, model, tasks and run folder, opened and written together.

Tasks are served in an order that seed and iteration decide; a resumed session redoes the unfinished
iteration and ends with the same numbers as one that was not interrupted.
"""

import json
import os
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.run_config import RunConfig

if TYPE_CHECKING:
    from benchmarks import Task
    from envs import ToolEnv
    from learners.loop import Run
    from learners.progress import Narrator


class UsageError(RuntimeError):
    """What a person asked for cannot be done; the message says what to change."""


@dataclass
class Session:
    """A run with its folder and tasks. Mutated once per iteration."""

    run: "Run"
    folder: Path
    tasks: "Sequence[Task]"
    """Training tasks, in the benchmark's order."""

    def tasks_of(self, iteration: int) -> "list[Task]":
        """The tasks of an iteration: those lost before, then the next of the epoch's order."""
        config = self.run.config
        by_id = {task.id: task for task in self.tasks}
        lost = [by_id[name] for name in self.run.lost][: config.prompts]
        wanted = range(iteration * config.prompts, (iteration + 1) * config.prompts)
        places = [divmod(index, len(self.tasks)) for index in wanted]
        orders = {epoch: self._order(epoch, config.seed) for epoch in {e for e, _ in places}}
        fresh = [self.tasks[orders[epoch][place]] for epoch, place in places]
        return (lost + fresh)[: config.prompts]

    def _order(self, epoch: int, seed: int) -> list[int]:
        order = list(range(len(self.tasks)))
        random.Random(f"{seed}/epoch/{epoch}").shuffle(order)
        return order


def training_env(config: RunConfig) -> "ToolEnv":
    """The environment that training plays.

    Raises:
        gymnasium.error.Error: no such id; the message names the nearest.
        UsageError: it would train on test rows, or is no environment of ours.
    """
    import gymnasium as gym

    import envs

    if config.train_split == "test" and not config.train_on_test:
        raise UsageError(
            "--train-split test trains on the rows results are reported on; use train, or add "
            "--train-on-test if that is what you want"
        )
    if not isinstance(gym.make(config.env).unwrapped, envs.ToolEnv):
        raise UsageError(f"--env {config.env} is not one of ours; expected appo/<Benchmark>-v0")
    env = gym.make(config.env, **env_arguments(config, config.train_split)).unwrapped
    assert isinstance(env, envs.ToolEnv)
    return env


def env_arguments(config: RunConfig, split: str) -> dict[str, Any]:
    """What gym.make is given for a split."""
    return {
        "split": split,
        "data_dir": config.data_dir,
        "reward": config.reward,
        "level": config.level,
        "tools": config.tools,
        "sandbox": config.sandbox,
    }


def default_folder(method: str, config: RunConfig) -> str:
    """runs/<method>-<benchmark>-<seed>."""
    benchmark = config.env.split("/")[-1].removesuffix("-v0")
    return f"runs/{method.split('.')[-1]}-{benchmark}-{config.seed}"


def open_session(config: RunConfig, env: "ToolEnv", folder: Path, newest: int | None) -> Session:
    """Load model and tasks; continue from the newest checkpoint if there is one."""
    import torch

    from learners.checkpoint import checkpoint_folder, load_checkpoint
    from learners.loop import Run
    from learners.models import load_model
    from learners.policy import Policy
    from learners.rollout import Rollouts
    from learners.sampler import TransformersSampler

    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    tasks = env.tasks
    source = config.model if newest is None else str(checkpoint_folder(folder, newest))
    loaded = load_model(source, seed=config.seed)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    policy = Policy(
        loaded,
        learning_rate=learning_rate(config, loaded.model.num_parameters()),
        temperature=config.temperature,
        betas=config.adam_betas,
        microbatch_tokens=config.microbatch_tokens,
        autocast=config.autocast,
    )
    sampler = TransformersSampler(
        loaded.model, loaded.tokenizer, env.stop_tags, rows=config.sampler_rows
    )
    rollouts = Rollouts(
        env, sampler, loaded.tokenizer, config.max_response_tokens, config.temperature, config.seed
    )
    session = Session(Run(config, policy, rollouts), folder, tasks)
    if newest is not None:
        state = load_checkpoint(folder, newest, policy)
        session.run.iteration, session.run.lost = newest, state["lost"]
    return session


def learning_rate(config: RunConfig, parameters: int) -> float:
    """The rate given, or the scale's: a laptop takes few steps, so it takes larger ones."""
    if config.learning_rate is not None:
        return config.learning_rate
    if config.scale == "paper":
        return 1e-6
    return 3e-4 if parameters < 20_000_000 else 1e-5


def run_iteration(
    session: Session, iteration: "Callable[[list[Task], Run, Any], None]"
) -> dict[str, float]:
    """One iteration of a session: its tasks, the method, its metrics."""
    run = session.run
    start = time.perf_counter()
    tasks = session.tasks_of(run.iteration)
    # What the iteration before left in the sampler would round otherwise than a resumed run's.
    run.rollouts.sampler.sync()
    iteration(tasks, run, run.config)
    metrics = run.metrics()
    run.lost = [
        tree.task.id
        for tree in run.trees
        if tree.unavailable is not None and tree.task.id not in run.lost
    ]
    metrics["seconds/iteration"] = round(time.perf_counter() - start, 4)
    return metrics


def record(session: Session, metrics: dict[str, Any]) -> None:
    """Write an iteration's metrics and rollouts, then its checkpoint; advance."""
    from learners.checkpoint import save_checkpoint
    from learners.rollout_files import write_rollouts

    run = session.run
    write_rollouts(session.folder, run.iteration, run.trees, run.policy.loaded.tokenizer)
    with (session.folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(metrics) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    run.iteration += 1
    last = run.iteration >= run.config.iterations
    if run.iteration % run.config.checkpoint_every == 0 or last:
        save_checkpoint(session.folder, run.iteration, run.policy, {"lost": run.lost})


def _is_of(path: Path, iteration: int) -> bool:
    return bool(json.loads(path.read_text())["iteration"] == iteration)


def evaluate_once(session: Session, name: str, narrator: "Narrator") -> None:
    """Evaluate on held-out test tasks, unless this run did so already; write <name>.json."""
    import gymnasium as gym

    import envs
    from learners.checkpoint import write_text
    from learners.evaluation import evaluate

    config, run = session.run.config, session.run
    path = session.folder / f"evaluation-{name}.json"
    if config.eval_tasks == 0 or (
        path.exists() and (name == "before" or _is_of(path, run.iteration))
    ):
        return
    env = gym.make(config.env, **env_arguments(config, "test")).unwrapped
    assert isinstance(env, envs.ToolEnv)  # as the training environment is
    rollouts = replace(
        run.rollouts, env=env, temperature=config.eval_temperature, ledger=type(run.ledger)()
    )
    start = time.perf_counter()
    try:
        with narrator.status(f"evaluating {name} training"):
            result = evaluate(rollouts, env.tasks[: config.eval_tasks])
    finally:
        env.close()
    result["seconds"] = round(time.perf_counter() - start, 2)
    result["iteration"] = run.iteration
    write_text(path, json.dumps(result))
