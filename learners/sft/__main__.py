"""Supervised fine-tuning: the cold start on demonstrations.

A benchmark's scripted episodes are played through its environment, with real tools; what the script
says becomes ids by the same two encode calls as a rollout, segment by segment. The loss is on
actions only, closing tags included; `</answer>` ends a turn, so no end token follows it. A model
with new weights (`--model tiny`) also learns to predict prompts and results: it has never read.
A batch is packed, each demonstration on its own and what they share read once, where that is less
work than padding (`learners.policy.batch`); the log says how many of its tokens were read, and how.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from envs import ToolEnv
from learners.config import Optimisation, RunConfig
from learners.console import Console, parse_options, report_errors
from learners.tree import Trajectory

if TYPE_CHECKING:
    from learners.policy import Policy, Work
    from learners.runs import Session
    from learners.sft.transcripts import Reading

ADAM_BETAS = (0.9, 0.98)
"""A short run forgets its first gradients sooner than the papers' 0.999."""
WARM_UP = 0.03
"""Share of the updates in which the learning rate rises."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Fields of the cold start; those of rollouts and the environment are a run's."""

    optimisation: Optimisation = field(default_factory=lambda: Optimisation(adam_betas=ADAM_BETAS))
    demonstrations: int | None = None
    """Scripted episodes to train on, from the first; None: all there are."""
    transcripts: str | None = None
    """Train on written episodes instead: a .json, .jsonl or .parquet file or a hub id, in the form
    of ARPO-SFT-54K; results are read as written, no tool is run. See sft/transcripts.py."""
    epochs: int = 1
    """Passes over them."""
    batch_tokens: int | None = None
    """Padded tokens per optimiser step; None: 1200 for tiny, 4096 otherwise."""
    observation_weight: float | None = None
    """Weight of predicting prompts and results; None: 1 for new weights, 0 otherwise."""

    @property
    def new_weights(self) -> bool:
        """Whether the model has never been trained."""
        return self.training.model == "tiny"


def main() -> None:
    """The command line."""
    arguments = sys.argv[1:]
    config = parse_options("learners.sft", Config.at("laptop"), arguments, __doc__)
    with report_errors("learners.sft", arguments, "cold start"):
        cold_start(config)


def cold_start(config: Config) -> Path:
    """Fine-tune and save; returns the folder, which `--model` takes.

    Raises:
        UsageError: the benchmark has no demonstrations.
    """
    from learners.errors import UsageError
    from learners.run_folder import lock_folder
    from learners.runs import make_training_env

    config = resolved(config)
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
        return _cold_start(config, env, folder)


def _cold_start(config: Config, env: ToolEnv, folder: Path) -> Path:
    from learners.console import Console
    from learners.policy import save_model
    from learners.run_folder import open_folder, write_text
    from learners.runs import evaluate_once, open_session

    newest = open_folder(folder, "learners.sft", config)
    session = open_session(config, env, folder, newest)
    narrator = Console()
    if not config.new_weights:
        evaluate_once(session, "before", narrator)
    if not (folder / "model").exists():
        fine_tune(session, _shown(session, config, env, narrator), config, narrator)
        partial = folder / "partial-model"
        save_model(session.policy.loaded, partial)
        partial.rename(folder / "model")
    session.rollouts.sampler.sync()
    evaluate_once(session, "after", narrator)
    result = (
        json.loads((folder / "evaluation-after.json").read_text())
        if config.evaluation.eval_tasks
        else {}
    )
    summary = _summary(result)
    write_text(folder / "summary.json", json.dumps(summary))
    narrator.say(f"{summary}\nmodel in {folder}: give it to --model")
    return folder


def _shown(session: Session, config: Config, env: ToolEnv, narrator: Console) -> list[Trajectory]:
    """What is trained on: the benchmark's own demonstrations, or written transcripts."""
    from benchmarks import question_key
    from learners.errors import UsageError
    from learners.sft.transcripts import play, read

    if config.transcripts is not None:
        held_out = session.test_env.tasks if session.test_env else ()
        evaluated = {question_key(task.question) for task in held_out}
        reading = read(config.transcripts, session.rollouts, evaluated, config.demonstrations)
        narrator.say(
            f"{len(reading.trajectories)} transcripts of {config.transcripts}{_reasons(reading)}"
        )
        return reading.trajectories
    script, name = env.benchmark.demonstrations, env.benchmark.name
    assert script is not None
    served = {task.id for task in env.tasks}  # a level leaves some out
    scripted = [d for d in script(env.data_dir) if d.task.id in served]
    demonstrations = scripted[: config.demonstrations]
    narrator.say(f"playing {len(demonstrations)} demonstrations of {name} with real tools")
    played = play(session.rollouts, demonstrations)
    if played.left_out:
        narrator.say(f"{len(played.trajectories)} of them are trained on{_reasons(played)}")
    if not played.trajectories:
        raise UsageError(f"no demonstration of {name} can be used{_reasons(played)}")
    return played.trajectories


def _reasons(reading: Reading) -> str:
    return "".join(f"\n  {n} left out: {why}" for why, n in reading.left_out.most_common())


def resolved(config: Config) -> Config:
    """The config with its None fields decided."""
    new = config.new_weights
    return config.override(
        optimizer=config.optimisation.optimizer or ("muon" if new else "adamw"),
        learning_rate=config.optimisation.learning_rate or (3e-3 if new else 2e-5),
        batch_tokens=config.batch_tokens or (1200 if new else 4096),
        observation_weight=float(new)
        if config.observation_weight is None
        else config.observation_weight,
    )


def fine_tune(
    session: Session,
    trajectories: Sequence[Trajectory],
    config: Config,
    narrator: Console,
) -> None:
    """All updates, from the newest checkpoint on; batches are the same for the same seed."""
    from learners.errors import UsageError
    from learners.runs import save_checkpoint
    from learners.sft.early_stopping import HeldOut

    policy = session.policy
    kept = (
        min(config.evaluation.validation_tasks, len(trajectories) // 2)
        if config.evaluation.eval_every
        else 0
    )
    held_out, trajectories = trajectories[:kept], trajectories[kept:]
    watch = HeldOut(
        held_out, config.evaluation.eval_every, config.evaluation.patience, session.folder
    )
    watch.resume(policy.updates)
    batches = [
        batch
        for epoch in range(config.epochs)
        for batch in _batches(
            trajectories, config.batch_tokens or 0, f"{config.training.seed}/{epoch}"
        )
    ]
    losses: list[float] = []
    with narrator.bar("fine-tuning", len(batches), policy.updates) as advance:
        while policy.updates < len(batches) and not watch.stopped:
            done = policy.updates
            policy.set_learning_rate(
                (config.optimisation.learning_rate or 0) * _schedule(done / len(batches))
            )
            losses.append(_update(policy, batches[done], config.observation_weight or 0.0))
            if policy.updates == done:
                raise UsageError(
                    f"the gradient of update {done + 1} is not finite with --learning-rate "
                    f"{config.optimisation.learning_rate:g}; try a smaller one"
                )
            read = _read(policy.work)
            watch.over(policy)
            told = f"  held out {watch.losses[-1]:.3f}" if watch.losses else ""
            advance(f"loss {sum(losses[-50:]) / len(losses[-50:]):.3f}{told}  {read}")
            if policy.updates % max(1, len(batches) // 4) == 0 or policy.updates == len(batches):
                save_checkpoint(session.folder, policy.updates, policy, {"lost": []})
    watch.restore_best(policy)


def _update(policy: Policy, trajectories: Sequence[Trajectory], observation_weight: float) -> float:
    import torch

    from learners.tree import Row

    rows, weights = [], []
    total = sum(t.sampled_tokens for t in trajectories)
    rest = sum(len(t.prompt_ids) + len(t) - t.sampled_tokens for t in trajectories)
    for trajectory in trajectories:
        mask = torch.tensor([False] * len(trajectory.prompt_ids) + list(trajectory.response_mask))
        rows.append(Row(trajectory, torch.zeros(len(trajectory))))
        weights.append(mask / total + ~mask * (observation_weight / max(rest, 1)))
    done = policy.update(
        rows,
        weights,
        lambda logprobs, batch: -(logprobs * batch.weights).sum(),
        everything=observation_weight > 0,
    )
    return done.loss


def _read(work: Work) -> str:
    """How many of a batch's tokens were computed, padding included, and how it was laid out."""
    how = "packed" if work.trees else "padded"
    return f"read {work.computed_tokens / max(1, work.row_tokens):.0%}, {how}"


def _schedule(progress: float) -> float:
    """Rises at the start, falls linearly over the second half."""
    return min(1.0, progress / WARM_UP + 0.02, max(0.05, 2 * (1 - progress)))


def _batches(trajectories: Sequence[Trajectory], tokens: int, seed: str) -> list[list[Trajectory]]:
    """Trajectories of like length together, in an order that the seed decides."""
    draw = random.Random(f"sft/{seed}")

    def length(trajectory: Trajectory) -> int:
        return len(trajectory.prompt_ids) + len(trajectory)

    ordered = sorted(trajectories, key=lambda t: length(t) + draw.random() * 32)
    batches: list[list[Trajectory]] = [[]]
    longest = 0
    for trajectory in ordered:
        longest = max(longest, length(trajectory))
        if batches[-1] and longest * (len(batches[-1]) + 1) > tokens:
            batches.append([])
            longest = length(trajectory)
        batches[-1].append(trajectory)
    draw.shuffle(batches)
    return batches


def _summary(result: dict[str, Any]) -> dict[str, Any]:
    from learners.intervals import wilson

    rows = result.get("tasks", [])
    rate = wilson(sum(row["score"] for row in rows), len(rows))
    return {"held_out_tasks": len(rows), "accuracy": str(rate)} if rows else {}


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
