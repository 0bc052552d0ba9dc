"""Rollout files: every tree of a run, one JSON line per trajectory.

Fields: task, path, parent (path or null), position (response tokens shared), prompt_ids,
response_ids, response_mask, sampler_logprobs, reward, reward_terms, stop, calls, text. Text and ids
of restricted tasks are left out: their owners ask that they are not written in the clear.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from learners.tree import RolloutTree, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VERSION = 1


def write_rollouts(
    folder: Path, iteration: int, trees: list[RolloutTree], tokenizer: "PreTrainedTokenizerBase"
) -> None:
    """Write `rollouts/<iteration>.jsonl`, replacing one of a discarded attempt."""
    target = folder / "rollouts" / f"{iteration:06d}.jsonl"
    target.parent.mkdir(exist_ok=True)
    with target.open("w", encoding="utf-8") as lines:
        for tree in trees:
            for trajectory in tree.trajectories:
                row = _row(tree, trajectory, tokenizer)
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")


def _row(
    tree: RolloutTree, trajectory: Trajectory, tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, Any]:
    parent = trajectory.parent
    row: dict[str, Any] = {
        "version": VERSION,
        "task": tree.task.id,
        "path": trajectory.path,
        "parent": None if parent is None else parent.trajectory.path,
        "position": None if parent is None else parent.position,
        "score": None if parent is None else parent.score,
        "reward": trajectory.reward,
        "reward_terms": trajectory.reward_terms,
        "stop": trajectory.state.stop,
        "calls": trajectory.state.calls,
        "unavailable": tree.unavailable,
        "response_tokens": len(trajectory),
    }
    if tree.task.restricted:
        return row
    return row | {
        "prompt_ids": trajectory.prompt_ids,
        "response_ids": trajectory.response_ids,
        "response_mask": [int(own) for own in trajectory.response_mask],
        "sampler_logprobs": [round(x, 5) for x in trajectory.sampler_logprobs],
        "text": tokenizer.decode(trajectory.response_ids, skip_special_tokens=False),
    }
