"""Rollout files read back into rollout trees: everything but live tools and weights.

What a file does not hold of restricted tasks is empty here: their tokens are zeros, their texts "".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks import Task
from envs import Call, EnvState, Stop
from learners.tree import BranchPoint, Completion, Diagnostics, RolloutTree, Trajectory, Turn

StoredRow = Mapping[str, Any]
"""Values of a row of a rollout file, by column."""


def stored_trees(
    rows: Sequence[StoredRow], tasks: Mapping[str, Task] | None = None
) -> list[RolloutTree]:
    """The trees of an iteration, in their order, every trajectory as it was at the end.

    Args:
        rows: of `learners.rollouts.storage.read_rows`.
        tasks: by id; a task that is not in it has the file's question and answers alone.
    """
    groups: defaultdict[int, list[StoredRow]] = defaultdict(list)
    for row in rows:
        groups[row["tree"]].append(row)
    met: Counter[str] = Counter()
    trees = []
    for _, group in sorted(groups.items()):
        name = group[0]["task"]
        task = (tasks or {}).get(name) or _task(group[0])
        trees.append(_tree(group, task, met[name]))
        met[name] += 1
    return trees


def _task(row: StoredRow) -> Task:
    answers = row["answers"]
    return Task(
        row["task"], row["question"] or "", tuple(answers or ()), restricted=answers is None
    )


def _tree(rows: Sequence[StoredRow], task: Task, copy: int) -> RolloutTree:
    tree = RolloutTree(task, tuple(rows[0]["prompt_ids"] or ()), _state(rows[0], ()), copy=copy)
    tree.unavailable = rows[0]["unavailable"]
    known: dict[tuple[int, ...], Trajectory] = {}
    for row in rows:  # a parent comes before its branches
        trajectory = _trajectory(row, tree, known)
        known[trajectory.path] = trajectory
        tree.trajectories.append(trajectory)
    return tree


def _trajectory(
    row: StoredRow, tree: RolloutTree, known: Mapping[tuple[int, ...], Trajectory]
) -> Trajectory:
    parent = None
    if row["parent"] is not None:
        source = known[tuple(row["parent"])]
        parent = BranchPoint(source, row["position"], row["score"])
    turns = _turns(row, parent)
    begin = sum(len(turn) for turn in turns)
    return Trajectory(
        tree.prompt_ids,
        _state(row, _transcript(row["turns"]), stop=row["stop"], calls=tuple(row["calls"])),
        path=tuple(row["path"]),
        turns=turns,
        prefill=_completion(row, begin, len(row["mask"]), "tag"),
        parent=parent,
        reward=row["reward"],
        reward_terms=dict(row["reward_terms"]),
        done=row["done"],
        old_logprobs=_tensor(row["old_logprobs"]),
        reference_logprobs=_tensor(row["reference_logprobs"]),
        discarded_tokens=row["discarded_tokens"],
        diagnostics=Diagnostics(
            logprobs=_tensor(row["logprobs"]),
            entropies=_tensor(row["entropies"]),
            age=row["scoring_age"],
            future_values=_tensor(row["future_values"]),
            scores=_tensor(row["branch_scores"]),
            advantages=_tensor(row["advantages"]),
            weights=_tensor(row["weights"]),
        ),
    )


def _turns(row: StoredRow, parent: BranchPoint | None) -> list[Turn]:
    """Turns of a row; whole ones before the branch point are the parent's own objects."""
    found: list[Turn] = []
    ids = row["token_ids"] or [0] * len(row["mask"])
    for index, told in enumerate(row["turns"]):
        if parent is not None and told["end"] <= parent.position:
            found.append(parent.trajectory.turns[index])
            continue
        before = row["turns"][:index]
        call = None
        if told["tool"] is not None:
            call = Call(
                told["tool"], told["argument"] or "", told["ok"], told["seconds"], told["free"]
            )
        calls = tuple(turn["tool"] for turn in before if turn["tool"] is not None)
        found.append(
            Turn(
                _state(row, _transcript(before), calls=calls),
                _completion(row, told["begin"], told["action_end"], told["stop"]),
                tuple(ids[told["action_end"] : told["end"]]),
                call,
            )
        )
    return found


def _completion(row: StoredRow, begin: int, end: int, stop: Any) -> Completion:  # noqa: ANN401 - a literal
    ids = row["token_ids"] or [0] * len(row["mask"])
    return Completion(
        tuple(ids[begin:end]),
        tuple(row["sampler_logprobs"][begin:end]),
        tuple(row["sampler_entropies"][begin:end]),
        stop,
    )


def _transcript(turns: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    said = [text for turn in turns for text in (turn["action"], turn["observation"])]
    return tuple(text for text in said if text is not None)


def _state(
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


def _tensor(values: Sequence[float] | None) -> Tensor | None:
    return None if values is None else torch.tensor(values)
