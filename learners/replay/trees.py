"""Builds rollout trees from rollout files: everything but live tools and weights.

Files hold no text and no ids of restricted tasks; here their tokens are zeros, their texts "".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import Task
from envs import Call, EnvState, Stop
from learners.tree import (
    BranchPoint,
    Completion,
    Diagnostics,
    RolloutTree,
    StopReason,
    Trajectory,
    Turn,
)

StoredRow = Mapping[str, Any]
"""Values of a row of a rollout file, by column."""


def build_trees(
    rows: Sequence[StoredRow], tasks: Mapping[str, Task] | None = None
) -> list[RolloutTree]:
    """Build the trees of an iteration, in their order, each trajectory in its final state.

    Args:
        rows: from `learners.rollouts.storage.read_rows`.
        tasks: by id; a missing task is made from the file's question and answers.
    """
    groups: defaultdict[int, list[StoredRow]] = defaultdict(list)
    for row in rows:
        groups[row["tree"]].append(row)
    copies: Counter[str] = Counter()
    trees = []
    for _, group in sorted(groups.items()):
        name = group[0]["task"]
        task = (tasks or {}).get(name) or _build_task(group[0])
        trees.append(_build_tree(group, task, copies[name]))
        copies[name] += 1
    return trees


def _build_task(row: StoredRow) -> Task:
    answers = row["answers"]
    return Task(
        row["task"], row["question"] or "", tuple(answers or ()), restricted=answers is None
    )


def _build_tree(rows: Sequence[StoredRow], task: Task, copy: int) -> RolloutTree:
    start = _build_state(rows[0], ())
    tree = RolloutTree(task, tuple(rows[0]["prompt_ids"] or ()), start, copy=copy)
    tree.unavailable = rows[0]["unavailable"]
    by_path: dict[tuple[int, ...], Trajectory] = {}
    for row in rows:  # a parent comes before its branches
        trajectory = _build_trajectory(row, tree, by_path)
        by_path[trajectory.path] = trajectory
        tree.trajectories.append(trajectory)
    return tree


def _build_trajectory(
    row: StoredRow, tree: RolloutTree, by_path: Mapping[tuple[int, ...], Trajectory]
) -> Trajectory:
    parent = None
    if row["parent"] is not None:
        source = by_path[tuple(row["parent"])]
        parent = BranchPoint(source, row["position"], row["score"])
    turns = _build_turns(row, parent)
    begin = sum(len(turn) for turn in turns)
    return Trajectory(
        tree.prompt_ids,
        _build_state(
            row, _join_transcript(row["turns"]), stop=row["stop"], calls=tuple(row["calls"])
        ),
        path=tuple(row["path"]),
        turns=turns,
        prefill=_build_completion(row, begin, len(row["mask"]), "tag"),
        parent=parent,
        reward=row["reward"],
        reward_terms=dict(row["reward_terms"]),
        done=row["done"],
        old_logprobs=_to_tensor(row["old_logprobs"]),
        reference_logprobs=_to_tensor(row["reference_logprobs"]),
        discarded_tokens=row["discarded_tokens"],
        diagnostics=Diagnostics(
            logprobs=_to_tensor(row["logprobs"]),
            entropies=_to_tensor(row["entropies"]),
            age=row["scoring_age"],
            future_values=_to_tensor(row["future_values"]),
            scores=_to_tensor(row["branch_scores"]),
            advantages=_to_tensor(row["advantages"]),
            weights=_to_tensor(row["weights"]),
        ),
    )


def _build_turns(row: StoredRow, parent: BranchPoint | None) -> list[Turn]:
    """Build the turns of a row; complete turns before the branch point are the parent's objects."""
    turns: list[Turn] = []
    ids = row["token_ids"] or [0] * len(row["mask"])
    for index, stored in enumerate(row["turns"]):
        if parent is not None and stored["end"] <= parent.position:
            turns.append(parent.trajectory.turns[index])
            continue
        call = None
        if stored["tool"] is not None:
            call = Call(
                stored["tool"],
                stored["argument"] or "",
                stored["ok"],
                stored["seconds"],
                stored["free"],
            )
        earlier = row["turns"][:index]
        calls = tuple(turn["tool"] for turn in earlier if turn["tool"] is not None)
        turns.append(
            Turn(
                _build_state(row, _join_transcript(earlier), calls=calls),
                _build_completion(row, stored["begin"], stored["action_end"], stored["stop"]),
                tuple(ids[stored["action_end"] : stored["end"]]),
                call,
            )
        )
    return turns


def _build_completion(row: StoredRow, begin: int, end: int, stop: StopReason) -> Completion:
    ids = row["token_ids"] or [0] * len(row["mask"])
    return Completion(
        tuple(ids[begin:end]),
        tuple(row["sampler_logprobs"][begin:end]),
        tuple(row["sampler_entropies"][begin:end]),
        stop,
    )


def _join_transcript(turns: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    texts = [text for turn in turns for text in (turn["action"], turn["observation"])]
    return tuple(text for text in texts if text is not None)


def _build_state(
    row: StoredRow,
    transcript: tuple[str, ...],
    stop: Stop | None = None,
    calls: tuple[str, ...] = (),
) -> EnvState:
    return EnvState(
        benchmark=row["benchmark"],
        revision=row["revision"],
        split=row["split"],
        task_id=row["task"],
        transcript=transcript,
        calls=calls,
        stop=stop,
    )


def _to_tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values)
