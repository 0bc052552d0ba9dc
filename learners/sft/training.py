"""The cold start: collects trajectories, fine-tunes on them and evaluates before and after.

The loss is on what the model writes, closing tags included; `</answer>` ends a turn, so no end
token follows it. A model with new weights (`--model tiny`) also learns to predict prompts and
results: it has never read. A batch is packed, with shared prefixes computed once, if that is less
work than padding (`learners.policy.batch`).
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from benchmarks import question_key
from envs import ToolEnv
from learners.console import Console
from learners.errors import UsageError
from learners.intervals import wilson
from learners.policy import Policy, Work, save_model
from learners.run_folder import lock_folder, open_folder, write_text
from learners.runs import Session, evaluate_once, make_training_env, open_session, save_checkpoint
from learners.sft.config import Config
from learners.sft.early_stopping import EarlyStopping
from learners.sft.transcripts import TrainingSet, play, read_transcripts
from learners.tree import Row, Trajectory

WARM_UP = 0.03
"""Share of the updates in which the learning rate rises."""

LOSS_WINDOW = 50
"""Updates whose mean loss the progress line shows."""


def cold_start(config: Config) -> Path:
    """Fine-tune and save.

    Returns:
        The run's folder, which `--model` takes.

    Raises:
        UsageError: the benchmark has no demonstrations.
    """
    config = config.resolve()
    env = make_training_env(config)
    if env.benchmark.demonstrations is None and config.transcripts is None:
        raise UsageError(
            f"--env {config.environment.env}: this benchmark has no demonstrations to start from; "
            "give --transcripts"
        )
    name = env.benchmark.name
    folder = Path(
        config.training.out
        or f"runs/sft-{name}-{config.training.model.split('/')[-1]}-{config.training.seed}"
    )
    with lock_folder(folder), closing(env):
        return _run(config, env, folder)


def _run(config: Config, env: ToolEnv, folder: Path) -> Path:
    """Train and evaluate in a locked folder; what a previous run finished is not repeated."""
    newest = open_folder(folder, "learners.sft", config)
    session = open_session(config, env, folder, newest)
    console = Console()
    if not config.new_weights:
        evaluate_once(session, "before", console)
    if not (folder / "model").exists():
        fine_tune(session, collect_trajectories(session, config, env, console), config, console)
        partial = folder / "partial-model"
        save_model(session.policy.loaded, partial)
        partial.rename(folder / "model")
    session.rollouts.sampler.sync()
    evaluate_once(session, "after", console)
    result = (
        json.loads((folder / "evaluation-after.json").read_text())
        if config.evaluation.eval_tasks
        else {}
    )
    summary = summarize(result)
    write_text(folder / "summary.json", json.dumps(summary))
    console.say(f"{summary}\nmodel in {folder}: give it to --model")
    return folder


def collect_trajectories(
    session: Session, config: Config, env: ToolEnv, console: Console
) -> list[Trajectory]:
    """Collect what is trained on: written transcripts, or the benchmark's demonstrations.

    Raises:
        UsageError: none of them can be used; the message says why.
    """
    if config.transcripts is not None:
        test_tasks = session.test_env.tasks if session.test_env else ()
        test_questions = {question_key(task.question) for task in test_tasks}
        training_set = read_transcripts(
            config.transcripts, session.rollouts, test_questions, config.demonstrations
        )
        console.say(
            f"{len(training_set.trajectories)} transcripts of {config.transcripts}"
            f"{_list_reasons(training_set)}"
        )
        return training_set.trajectories
    load_demonstrations, name = env.benchmark.demonstrations, env.benchmark.name
    assert load_demonstrations is not None
    task_ids = {task.id for task in env.tasks}  # a level leaves some tasks out
    demonstrations = [d for d in load_demonstrations(env.data_dir) if d.task.id in task_ids]
    demonstrations = demonstrations[: config.demonstrations]
    console.say(f"playing {len(demonstrations)} demonstrations of {name} with real tools")
    training_set = play(session.rollouts, demonstrations)
    if training_set.left_out:
        console.say(
            f"training on {len(training_set.trajectories)} of them{_list_reasons(training_set)}"
        )
    if not training_set.trajectories:
        raise UsageError(f"no demonstration of {name} can be used{_list_reasons(training_set)}")
    return training_set.trajectories


def _list_reasons(training_set: TrainingSet) -> str:
    return "".join(f"\n  {n} left out: {why}" for why, n in training_set.left_out.most_common())


def fine_tune(
    session: Session, trajectories: Sequence[Trajectory], config: Config, console: Console
) -> None:
    """Make all updates, from the newest checkpoint on, and keep the best weights.

    Raises:
        UsageError: a gradient is not finite.
    """
    policy = session.policy
    validation, training = _split(trajectories, config)
    early_stopping = EarlyStopping(
        validation, config.evaluation.eval_every, config.evaluation.patience, session.folder
    )
    early_stopping.resume(policy.updates)
    batches = [
        batch
        for epoch in range(config.epochs)
        for batch in make_batches(
            training, config.batch_tokens or 0, f"{config.training.seed}/{epoch}"
        )
    ]
    learning_rate = config.optimisation.learning_rate or 0
    losses: list[float] = []
    with console.bar("fine-tuning", len(batches), policy.updates) as advance:
        while policy.updates < len(batches) and not early_stopping.should_stop:
            done = policy.updates
            policy.set_learning_rate(learning_rate * schedule(done / len(batches)))
            losses.append(update(policy, batches[done], config.observation_weight or 0.0))
            if policy.updates == done:
                raise UsageError(
                    f"the gradient of update {done + 1} is not finite with --learning-rate "
                    f"{learning_rate:g}; try a smaller one"
                )
            # Before the evaluation, whose forward pass overwrites `policy.work`.
            work = describe_work(policy.work)
            early_stopping.evaluate_if_due(policy)
            recent = losses[-LOSS_WINDOW:]
            validated = early_stopping.losses
            advance(
                f"loss {sum(recent) / len(recent):.3f}"
                + (f"  validation loss {validated[-1]:.3f}" if validated else "")
                + f"  {work}"
            )
            if policy.updates % max(1, len(batches) // 4) == 0 or policy.updates == len(batches):
                save_checkpoint(session.folder, policy.updates, policy, {"lost": []})
    early_stopping.restore_best(policy)


def _split(
    trajectories: Sequence[Trajectory], config: Config
) -> tuple[Sequence[Trajectory], Sequence[Trajectory]]:
    """Split off the trajectories of the validation loss: the first ones, at most half of all."""
    if not config.evaluation.eval_every:
        return [], trajectories
    count = min(config.evaluation.validation_tasks, len(trajectories) // 2)
    return trajectories[:count], trajectories[count:]


def make_batches(
    trajectories: Sequence[Trajectory], max_tokens: int, seed: str
) -> list[list[Trajectory]]:
    """Batch trajectories of similar length, in an order that the seed determines.

    Args:
        trajectories: each is in exactly one batch.
        max_tokens: of a batch, padding included; one trajectory may exceed it alone.
        seed: the same seed gives the same batches, so that a resumed run continues them.
    """
    draw = random.Random(f"sft/{seed}")

    def length(trajectory: Trajectory) -> int:
        return len(trajectory.prompt_ids) + len(trajectory)

    # The noise mixes trajectories of similar length anew in every epoch.
    ordered = sorted(trajectories, key=lambda t: length(t) + draw.random() * 32)
    batches: list[list[Trajectory]] = [[]]
    longest = 0
    for trajectory in ordered:
        longest = max(longest, length(trajectory))
        if batches[-1] and longest * (len(batches[-1]) + 1) > max_tokens:
            batches.append([])
            longest = length(trajectory)
        batches[-1].append(trajectory)
    draw.shuffle(batches)
    return batches


def schedule(progress: float) -> float:
    """Factor of the learning rate: a short warm-up, then a linear decay over the second half."""
    return min(1.0, progress / WARM_UP + 0.02, max(0.05, 2 * (1 - progress)))


def update(policy: Policy, trajectories: Sequence[Trajectory], observation_weight: float) -> float:
    """Make one optimizer step on a batch.

    Args:
        policy: its weights change, unless the gradient is not finite.
        trajectories: of the batch.
        observation_weight: weight of the mean loss of prompts and results, next to 1 for actions.

    Returns:
        The batch's loss before the step.
    """
    rows, weights = [], []
    sampled = sum(t.sampled_tokens for t in trajectories)
    observed = sum(len(t.prompt_ids) + len(t) - t.sampled_tokens for t in trajectories)
    for trajectory in trajectories:
        mask = torch.tensor([False] * len(trajectory.prompt_ids) + list(trajectory.response_mask))
        rows.append(Row(trajectory, torch.zeros(len(trajectory))))
        weights.append(mask / sampled + ~mask * (observation_weight / max(observed, 1)))
    report = policy.update(
        rows,
        weights,
        lambda logprobs, batch: -(logprobs * batch.weights).sum(),
        everything=observation_weight > 0,
    )
    return report.loss


def describe_work(work: Work) -> str:
    """Describe a batch's layout and which share of its tokens was computed, padding included."""
    layout = "packed" if work.trees else "padded"
    share = work.computed_tokens / max(1, work.row_tokens)
    return f"computed {share:.0%}, {layout}"


def summarize(result: dict[str, Any]) -> dict[str, Any]:
    """Summarize an evaluation; empty without one."""
    rows = result.get("tasks", [])
    rate = wilson(sum(row["score"] for row in rows), len(rows))
    return {"held_out_tasks": len(rows), "accuracy": str(rate)} if rows else {}
