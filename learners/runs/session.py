"""A training session: environment, model, tasks and run folder, opened and written together.

Tasks are served in an order that seed and iteration decide; a resumed session redoes the unfinished
iteration and ends with the same numbers as one that was not interrupted.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import torch

import envs
from benchmarks import Task
from envs import ToolEnv
from learners.config import RunConfig
from learners.console import Console
from learners.errors import UsageError
from learners.ledger import LOST, Ledger, Spending, policy_flops, recorded
from learners.metrics import PEAK, tree_metrics
from learners.policy import Policy, Reference, load_model, lora, reference_of
from learners.rollouts import Rollouts, write_rollouts
from learners.run_folder import checkpoint_folder, list_checkpoints, write_text
from learners.runs.checkpoint import load_checkpoint, read_state, save_checkpoint
from learners.runs.environments import environment, prove_sandbox, stop_where_tools_fail
from learners.runs.evaluation import evaluate, over, stopped_early
from learners.runs.judging import appoint
from learners.runs.memory import IterationPeak, meter_of, profiled
from learners.runs.recorder import Recorder
from learners.runs.run import Run
from learners.runs.task_order import check, served
from learners.runs.trainer import PolicyTrainer
from learners.sampling import TransformersSampler, open_sampler, turns
from tools import PythonTool


@dataclass
class Session:
    """A training run's parts, folder and progress. Mutated once per iteration."""

    run: Run
    trainer: PolicyTrainer
    rollouts: Rollouts
    folder: Path
    tasks: Sequence[Task]
    """Training tasks, in the benchmark's order."""
    held_out: ToolEnv | None = None
    """The environment of evaluations, if there are any."""
    iteration: int = 0
    """The iteration that comes next."""
    lost: list[str] = field(default_factory=list)
    """Ids of tasks whose tools were unavailable; served once more."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        policy: Policy,
        rollouts: Rollouts,
        folder: Path,
        *,
        held_out: ToolEnv | None = None,
        reference: Reference | None = None,
    ) -> Session:
        """A session that trains a policy on all tasks of its rollouts."""
        recorder = Recorder()
        trainer = PolicyTrainer(
            config, policy, rollouts.sampler, rollouts.ledger, recorder, reference
        )
        run = Run(config, rollouts, trainer, recorder)
        return cls(run, trainer, rollouts, folder, rollouts.tasks, held_out)

    @property
    def config(self) -> RunConfig:
        """The run's options."""
        return self.run.config

    @property
    def policy(self) -> Policy:
        """The policy in training."""
        return self.trainer.policy

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.rollouts.ledger

    def tasks_of(self, iteration: int) -> list[Task]:
        """The tasks of an iteration: those lost before, then those that are served in it."""
        prompts = self.config.training.prompts
        by_id = {task.id: task for task in self.tasks}
        lost = [by_id[name] for name in self.lost][:prompts]
        return (lost + served(self.config, self.tasks, iteration))[:prompts]


def training_env(config: RunConfig) -> ToolEnv:
    """The environment that training plays.

    Raises:
        gymnasium.error.Error: no such id; the message names the nearest.
        UsageError: it would train on test rows, is no environment of ours, or cannot be made so.
    """
    config.validate()
    for name in config.environment.ids:
        if not isinstance(gym.make(name).unwrapped, envs.ToolEnv):
            raise UsageError(f"--env {name} is not one of ours; expected appo/<Benchmark>-v0")
    return environment(config, config.environment.train_split)


def default_folder(method: str, config: RunConfig) -> str:
    """runs/<method>-<benchmark>-<seed>."""
    benchmark = "+".join(name.split("/")[-1].removesuffix("-v0") for name in config.environment.ids)
    return f"runs/{method.split('.')[-1]}-{benchmark}-{config.training.seed}"


def open_session(
    config: RunConfig,
    env: ToolEnv,
    folder: Path,
    newest: int | None,
    ledger: Ledger | None = None,
) -> Session:
    """Load tasks and model; continue from the newest checkpoint if there is one.

    What may be missing is looked for first, and the model is loaded last.

    Raises:
        benchmarks.DataUnavailable: the tasks of training or of evaluations cannot be had.
        tools.ToolUnavailable: there is no sandbox for Python.
        ModelNotFound: there is no such model.
    """
    torch.set_num_threads(config.training.threads or os.cpu_count() or 1)
    held_out = None
    check(config, env.tasks)
    ledger = ledger or Ledger(Spending(config.limits.budget()))
    appoint(env, config.judge, folder, ledger)
    if config.evaluation.eval_tasks:
        held_out = environment(config, "test")
        appoint(held_out, config.judge, folder, ledger)
        _ = held_out.tasks
    prove_sandbox(env)
    policy = _policy(config, folder, newest)
    loaded = policy.loaded
    sampler = open_sampler(config, loaded, env.stop_tags)
    rollouts = Rollouts(
        env,
        sampler,
        loaded.tokenizer,
        config.sampling.max_response_tokens,
        config.sampling.temperature,
        config.training.seed,
        tool_threads=config.sampling.sampler_rows if turns(config) == "overlap" else 8,
        turns=turns(config),
        ledger=ledger,
    )
    session = Session.of(
        config,
        policy,
        rollouts,
        folder,
        held_out=held_out,
        reference=reference_of(config, policy),
    )
    if newest is not None:
        session.iteration = newest
        session.lost = load_checkpoint(folder, newest, policy)["lost"]
    return session


def _policy(config: RunConfig, folder: Path, newest: int | None) -> Policy:
    """The model to begin with, or that of a checkpoint, and what trains it."""
    kept = None if newest is None else checkpoint_folder(folder, newest)
    fresh = kept is None or config.optimisation.lora_rank > 0
    loaded = load_model(config.training.model if fresh else str(kept), seed=config.training.seed)
    if config.optimisation.lora_rank:
        lora.add_adapters(
            loaded.model,
            config.optimisation.lora_rank,
            config.optimisation.lora_alpha,
            config.training.seed,
        )
        if kept is not None:
            lora.load_adapters(loaded.model, kept)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return Policy(
        loaded,
        learning_rate=learning_rate(config, loaded.model.num_parameters()),
        temperature=config.sampling.temperature,
        betas=config.optimisation.adam_betas,
        optimizer_name=config.optimisation.optimizer or "adamw",
        microbatch_tokens=config.optimisation.microbatch_tokens,
        autocast=config.optimisation.autocast,
        gradient_checkpointing=config.optimisation.gradient_checkpointing,
    )


def learning_rate(config: RunConfig, parameters: int) -> float:
    """The rate given, or the scale's: a laptop takes few steps, so it takes larger ones."""
    if config.optimisation.learning_rate is not None:
        return config.optimisation.learning_rate
    if config.training.scale == "paper":
        return 1e-6
    return 3e-4 if parameters < 20_000_000 else 1e-5


def open_ledger(config: RunConfig, folder: Path, kept: Sequence[Mapping[str, Any]]) -> Ledger:
    """The ledger of the run in a folder; work that was discarded is counted in it as lost.

    Lost is what `spent.json` says was spent since the newest checkpoint, without the evaluation
    that followed it, if that stays; a run that goes on will replace it.

    Args:
        config: has the bounds of what may be spent.
        folder: of the run.
        kept: lines of its metrics that are not discarded; what was spent, where no file says so.

    Raises:
        RunStopped: `spent.json` is damaged.
    """
    newest = max(list_checkpoints(folder), default=None)
    path = folder / f"evaluation-{'before' if newest is None else 'after'}.json"
    evaluation = json.loads(path.read_text()) if path.exists() else {}
    stays = newest is None or (
        evaluation.get("iteration") == newest
        and (over(config, newest, kept) or stopped_early(config, kept))
    )
    spending = Spending(
        config.limits.budget(), folder / "spent.json", recorded([*kept, evaluation])
    )
    ledger, spent = Ledger(spending), spending.totals()
    before = {} if newest is None else read_state(folder, newest).get("spent", spent)
    evaluated = recorded([evaluation]) if stays else {}
    for name, of in LOST.items():
        lost = spent.get(of, 0) - before.get(of, 0) - evaluated.get(of, 0)
        if lost > 0:
            ledger.add(name, lost)
    return ledger


def run_iteration(
    session: Session, iteration: Callable[[list[Task], Run, Any], None]
) -> dict[str, float]:
    """Play one iteration of a session and return its metrics."""
    run, rollouts, policy = session.run, session.rollouts, session.policy
    start = time.perf_counter()
    counters = read_counters(rollouts)
    peak = IterationPeak(meter_of(policy.model.device))
    peak.begin()
    run.begin(session.iteration)
    session.trainer.begin_iteration(session.iteration)
    tasks = session.tasks_of(session.iteration)
    # What the iteration before left in the sampler would round otherwise than a resumed run's.
    rollouts.sampler.sync()
    profile = profiled(policy, rollouts.sampler, session.ledger, peak)
    with profile if session.config.training.profile_memory else nullcontext():
        iteration(tasks, run, session.config)
    count_since(counters, rollouts)
    session.ledger.inherited(run.trees)
    metrics = run.recorder.take() | session.ledger.take() | tree_metrics(run.trees)
    metrics[PEAK] = peak.most()
    metrics["ledger/flops"] = policy_flops(policy.model.num_parameters(), metrics)
    session.lost = [
        tree.task.id
        for tree in run.trees
        if tree.unavailable is not None and tree.task.id not in session.lost
    ]
    metrics = {name: metrics[name] for name in sorted(metrics)}
    metrics["seconds/iteration"] = round(time.perf_counter() - start, 4)
    return metrics


def read_counters(rollouts: Rollouts) -> dict[str, int]:
    """Read counters of the sampler and the tools. They only rise, also while others use them."""
    pythons = [tool for tool in rollouts.env.tools if isinstance(tool, PythonTool)]
    counters = {
        "forked_states": sum(tool.forks for tool in pythons),
        "replayed_states": sum(tool.replays for tool in pythons),
    }
    if isinstance(rollouts.sampler, TransformersSampler):
        counters["prefilled_tokens"] = rollouts.sampler.prefilled_tokens
    return counters


def count_since(before: dict[str, int], rollouts: Rollouts) -> None:
    """Add to the ledger the amounts by which counters have risen since they were read."""
    for name, value in read_counters(rollouts).items():
        rollouts.ledger.add(name, value - before[name])


def record(session: Session, metrics: dict[str, Any], last: bool) -> None:
    """Write an iteration's metrics and rollouts, then its checkpoint if due or last; advance."""
    tokenizer = session.policy.loaded.tokenizer
    write_rollouts(session.folder, session.iteration, session.run.trees, tokenizer)
    with (session.folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(metrics) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    session.iteration += 1
    if session.iteration % session.config.training.checkpoint_every == 0 or last:
        state = {"lost": session.lost, "spent": dict(session.ledger.spending.totals())}
        save_checkpoint(session.folder, session.iteration, session.policy, state)


def _is_of(path: Path, iteration: int) -> bool:
    return bool(json.loads(path.read_text())["iteration"] == iteration)


def evaluate_once(session: Session, name: str, narrator: Console) -> None:
    """Evaluate on held-out test tasks, unless this run did so already; write <name>.json."""
    config, env = session.config, session.held_out
    path = session.folder / f"evaluation-{name}.json"
    if env is None or (path.exists() and (name == "before" or _is_of(path, session.iteration))):
        return
    # The run's own ledger: its lost work is reported here if no iteration is left to do it.
    rollouts = replace(session.rollouts, env=env, temperature=config.evaluation.eval_temperature)
    start = time.perf_counter()
    try:
        with narrator.status(f"evaluating {name} training"):
            result = evaluate(rollouts, env.tasks[: config.evaluation.eval_tasks])
    finally:
        env.close()
    count = len(result["tasks"]) + len(result["faults"])
    stop_where_tools_fail(config, f"tasks, {name} training,", result["faults"], count)
    result["seconds"] = round(time.perf_counter() - start, 2)
    result["iteration"] = session.iteration
    write_text(path, json.dumps(result))
