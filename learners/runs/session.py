"""A training session: a run with its environment, model, tasks and folder.

A session resumes from its folder: it repeats the iterations after the newest checkpoint and ends
with the same numbers as a session that was not interrupted.
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

import torch

from benchmarks import Task
from envs import ToolEnv
from learners.config import RunConfig
from learners.console import Console
from learners.ledger import LOST_WORK, Ledger, RunUsage, policy_flops, recorded_usage
from learners.metrics import PEAK, compute_tree_metrics
from learners.policy import Policy, Reference, load_model, lora, make_reference
from learners.rollouts import Rollouts, write_rollouts
from learners.run_folder import checkpoint_folder, list_checkpoints, write_text
from learners.runs.checkpoint import load_checkpoint, read_state, save_checkpoint
from learners.runs.environments import check_tool_failures, make_env, prove_sandbox
from learners.runs.evaluation import evaluate, should_stop
from learners.runs.judging import install_judge
from learners.runs.memory import IterationMeter, make_meter, profile_memory
from learners.runs.recorder import Recorder
from learners.runs.run import Run
from learners.runs.task_order import check_tasks, select_tasks
from learners.runs.trainer import PolicyTrainer
from learners.sampling import open_sampler, resolve_turns
from tools import PythonTool


@dataclass
class Session:
    """A run, its folder and its progress. Mutated once per iteration."""

    run: Run
    trainer: PolicyTrainer
    rollouts: Rollouts
    folder: Path
    test_env: ToolEnv | None = None
    """The environment of the evaluations before and after training; None: no such evaluation."""
    iteration: int = 0
    """The iteration that comes next."""
    lost: list[str] = field(default_factory=list)
    """Ids of tasks that lost their tools in the last iteration; the next one serves them again."""

    @classmethod
    def of(
        cls,
        config: RunConfig,
        policy: Policy,
        rollouts: Rollouts,
        folder: Path,
        *,
        test_env: ToolEnv | None = None,
        reference: Reference | None = None,
    ) -> Session:
        """Make a session that trains a policy on all tasks of its rollouts."""
        recorder = Recorder()
        trainer = PolicyTrainer(
            config, policy, rollouts.sampler, rollouts.ledger, recorder, reference
        )
        run = Run(config, rollouts, trainer, recorder)
        return cls(run, trainer, rollouts, folder, test_env)

    @property
    def config(self) -> RunConfig:
        """The run's options."""
        return self.run.config

    @property
    def tasks(self) -> Sequence[Task]:
        """Training tasks, in the benchmark's order."""
        return self.rollouts.tasks

    @property
    def policy(self) -> Policy:
        """The policy in training."""
        return self.trainer.policy

    @property
    def ledger(self) -> Ledger:
        """The run's ledger."""
        return self.rollouts.ledger

    def tasks_of(self, iteration: int) -> list[Task]:
        """The tasks of an iteration: those that lost their tools, then those that are due."""
        by_id = {task.id: task for task in self.tasks}
        lost = [by_id[name] for name in self.lost]
        selected = select_tasks(self.config, self.tasks, iteration)
        return (lost + selected)[: self.config.training.prompts]


def default_folder(method: str, config: RunConfig) -> str:
    """Name a run's folder: runs/<method>-<benchmark>-<seed>."""
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

    Everything that may be missing is checked first; the model is loaded last, since that takes
    longest.

    Args:
        config: the run's options.
        env: the environment of training.
        folder: the run's.
        newest: iteration of the newest checkpoint; None: a new run.
        ledger: the run's; None: a new one.

    Raises:
        benchmarks.DataUnavailable: the tasks of training or of the evaluations cannot be read.
        tools.ToolUnavailable: no sandbox for Python works on this machine.
        ModelNotFound: there is no such model.
    """
    torch.set_num_threads(config.training.threads or os.cpu_count() or 1)
    check_tasks(config, env.tasks)
    ledger = ledger or Ledger(RunUsage(config.limits.budget()))
    install_judge(env, config.judge, folder, ledger)
    test_env = None
    if config.evaluation.eval_tasks:
        test_env = make_env(config, "test")
        install_judge(test_env, config.judge, folder, ledger)
        _ = test_env.tasks  # loaded on first access
    prove_sandbox(env)
    policy = _load_policy(config, folder, newest)
    loaded, turns = policy.loaded, resolve_turns(config)
    sampler = open_sampler(config, loaded, env.stop_tags)
    rollouts = Rollouts(
        env,
        sampler,
        loaded.tokenizer,
        config.sampling.max_response_tokens,
        config.sampling.temperature,
        config.training.seed,
        tool_threads=config.sampling.sampler_rows if turns == "overlap" else 8,
        turns=turns,
        ledger=ledger,
    )
    session = Session.of(
        config,
        policy,
        rollouts,
        folder,
        test_env=test_env,
        reference=make_reference(config, policy),
    )
    if newest is not None:
        session.iteration = newest
        session.lost = load_checkpoint(folder, newest, policy)["lost"]
    return session


def _load_policy(config: RunConfig, folder: Path, newest: int | None) -> Policy:
    """Load the newest checkpoint's weights, or the start's, and make a new optimizer."""
    training, optimisation = config.training, config.optimisation
    checkpoint = None if newest is None else checkpoint_folder(folder, newest)
    # With LoRA the base weights stay the start's; a checkpoint adds its adapters to them.
    from_start = checkpoint is None or optimisation.lora_rank > 0
    loaded = load_model(training.model if from_start else str(checkpoint), seed=training.seed)
    if optimisation.lora_rank:
        lora.add_adapters(
            loaded.model, optimisation.lora_rank, optimisation.lora_alpha, training.seed
        )
        if checkpoint is not None:
            lora.load_adapters(loaded.model, checkpoint)
    if torch.cuda.is_available():
        loaded.model.to("cuda")
    return Policy(
        loaded,
        learning_rate=choose_learning_rate(config, loaded.model.num_parameters()),
        temperature=config.sampling.temperature,
        betas=optimisation.adam_betas,
        optimizer_name=optimisation.optimizer or "adamw",
        microbatch_tokens=optimisation.microbatch_tokens,
        autocast=optimisation.autocast,
        gradient_checkpointing=optimisation.gradient_checkpointing,
    )


def choose_learning_rate(config: RunConfig, parameters: int) -> float:
    """Return the configured rate, or the scale's: a laptop takes few steps, so larger ones."""
    if config.optimisation.learning_rate is not None:
        return config.optimisation.learning_rate
    if config.training.scale == "paper":
        return 1e-6
    return 3e-4 if parameters < 20_000_000 else 1e-5


def open_ledger(config: RunConfig, folder: Path, history: Sequence[Mapping[str, Any]]) -> Ledger:
    """Open the ledger of a run; count the work that a resume discards as lost.

    Lost is everything that `spent.json` has counted since the newest checkpoint, except an
    evaluation after that checkpoint that the resumed run will not repeat.

    Args:
        config: has the budget.
        folder: the run's.
        history: metrics of the iterations that are not discarded; the source of the totals if
            there is no `spent.json`.

    Raises:
        RunStopped: `spent.json` is damaged.
    """
    newest = max(list_checkpoints(folder), default=None)
    path = folder / f"evaluation-{'before' if newest is None else 'after'}.json"
    evaluation = json.loads(path.read_text()) if path.exists() else {}
    evaluation_stays = newest is None or (
        evaluation.get("iteration") == newest and should_stop(config, newest, history)
    )
    usage = RunUsage(
        config.limits.budget(), folder / "spent.json", recorded_usage([*history, evaluation])
    )
    ledger, spent = Ledger(usage), usage.totals()
    at_checkpoint = {} if newest is None else read_state(folder, newest).get("spent", spent)
    of_evaluation = recorded_usage([evaluation]) if evaluation_stays else {}
    for name, counter in LOST_WORK.items():
        lost = spent.get(counter, 0) - at_checkpoint.get(counter, 0) - of_evaluation.get(counter, 0)
        if lost > 0:
            ledger.add(name, lost)
    return ledger


def run_iteration(
    session: Session, iteration: Callable[[list[Task], Run, Any], None]
) -> dict[str, float]:
    """Run one iteration of a method and return its metrics."""
    run, rollouts, policy = session.run, session.rollouts, session.policy
    start = time.perf_counter()
    counters = read_counters(rollouts)
    meter = IterationMeter(make_meter(policy.model.device))
    meter.begin()
    run.begin(session.iteration)
    session.trainer.begin_iteration(session.iteration)
    tasks = session.tasks_of(session.iteration)
    # Prefixes cached by the last iteration change the last bits; a resumed run has none.
    rollouts.sampler.sync()
    profile = profile_memory(policy, rollouts.sampler, session.ledger, meter)
    with profile if session.config.training.profile_memory else nullcontext():
        iteration(tasks, run, session.config)
    count_since(counters, rollouts)
    session.ledger.count_reuse(run.trees)
    metrics = run.recorder.take() | session.ledger.take() | compute_tree_metrics(run.trees)
    metrics[PEAK] = meter.iteration_peak()
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
    """Read the counters of the sampler and the tools. They never fall and are never reset."""
    pythons = [tool for tool in rollouts.env.tools if isinstance(tool, PythonTool)]
    counters = {
        "forked_states": sum(tool.forks for tool in pythons),
        "replayed_states": sum(tool.replays for tool in pythons),
    }
    prefilled = rollouts.sampler.stats().prefilled_tokens
    if prefilled is not None:  # only the built-in sampler counts them
        counters["prefilled_tokens"] = prefilled
    return counters


def count_since(before: dict[str, int], rollouts: Rollouts) -> None:
    """Add to the ledger what counters have counted since they were read."""
    for name, value in read_counters(rollouts).items():
        rollouts.ledger.add(name, value - before[name])


def save_iteration(session: Session, metrics: dict[str, Any], last: bool) -> None:
    """Write an iteration's rollouts and metrics, and a checkpoint if it is due or the last.

    The session then stands before the next iteration.
    """
    tokenizer = session.policy.loaded.tokenizer
    write_rollouts(session.folder, session.iteration, session.run.trees, tokenizer)
    with (session.folder / "metrics.jsonl").open("a") as lines:
        lines.write(json.dumps(metrics) + "\n")
        lines.flush()
        os.fsync(lines.fileno())
    session.iteration += 1
    if session.iteration % session.config.training.checkpoint_every == 0 or last:
        state = {"lost": session.lost, "spent": dict(session.ledger.usage.totals())}
        save_checkpoint(session.folder, session.iteration, session.policy, state)


def evaluate_once(session: Session, name: str, console: Console) -> None:
    """Evaluate on test tasks and write evaluation-<name>.json, unless the run has done so.

    Args:
        session: at its start or its end.
        name: "before" or "after" training. A run that is made longer is evaluated after it again.
        console: shows that the evaluation is going on.
    """
    config, env = session.config, session.test_env
    path = session.folder / f"evaluation-{name}.json"
    if env is None:
        return
    if path.exists() and name == "before":
        return
    if path.exists() and json.loads(path.read_text())["iteration"] == session.iteration:
        return
    # The run's own ledger: lost work is reported here if no iteration is left to report it.
    rollouts = replace(session.rollouts, env=env, temperature=config.evaluation.eval_temperature)
    start = time.perf_counter()
    try:
        with console.status(f"evaluating {name} training"):
            result = evaluate(rollouts, env.tasks[: config.evaluation.eval_tasks])
    finally:
        env.close()
    count = len(result["tasks"]) + len(result["faults"])
    check_tool_failures(config, f"tasks, {name} training,", result["faults"], count)
    result["seconds"] = round(time.perf_counter() - start, 2)
    result["iteration"] = session.iteration
    write_text(path, json.dumps(result))
