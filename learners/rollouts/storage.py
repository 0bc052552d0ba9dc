"""Rollout files: every tree of a run as `rollouts/<iteration>.parquet`, a row per trajectory.

`COLUMNS` is the schema and the meaning of each column; `python -m learners.rollouts.storage` prints
it, docs/rollouts.md explains it. No text and no token ids of restricted tasks are written: their
owners ask that they are not stored in the clear.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from learners.errors import RolloutFileError
from learners.rollouts.encoding import decode_with_ends
from learners.tree import RolloutTree, Trajectory, Turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


VERSION = 2
"""Version of the schema; version 1 was lines of JSON with fewer fields."""

INTS, FLOATS = pa.list_(pa.int32()), pa.list_(pa.float32())

TURN = pa.struct(
    [
        ("begin", pa.int32()),
        ("action_end", pa.int32()),
        ("end", pa.int32()),
        ("stop", pa.string()),
        ("action", pa.string()),
        ("observation", pa.string()),
        ("tool", pa.string()),
        ("argument", pa.string()),
        ("ok", pa.bool_()),
        ("seconds", pa.float32()),
        ("free", pa.bool_()),
    ]
)


class Column(NamedTuple):
    """A column of a rollout file."""

    kind: pa.DataType
    meaning: str


COLUMNS = {
    "version": Column(pa.int16(), "of this schema"),
    "iteration": Column(pa.int32(), "training step, from 0"),
    "tree": Column(pa.int32(), "number of the tree in its iteration, from 0"),
    "benchmark": Column(pa.string(), "the task's"),
    "revision": Column(pa.string(), "of the benchmark's rows"),
    "split": Column(pa.string(), "train, validation or test"),
    "task": Column(pa.string(), "its id; several trees of an iteration may share it"),
    "question": Column(pa.string(), "what was asked; null if restricted"),
    "answers": Column(pa.list_(pa.string()), "any of them is right; null if restricted"),
    "path": Column(INTS, "root index, then (position, child index) per fork: names a trajectory"),
    "parent": Column(INTS, "path of the trajectory that a branch left; null for a root"),
    "position": Column(pa.int32(), "response tokens that a branch shares with its parent"),
    "score": Column(pa.float32(), "of the branch point, by the method's own rule"),
    "reward": Column(pa.float64(), "of the episode; 0 where it has not ended"),
    "reward_terms": Column(pa.map_(pa.string(), pa.float64()), "parts that add up to it"),
    "done": Column(pa.bool_(), "false only where a tool's machinery failed the tree"),
    "stop": Column(pa.string(), "how it ended: answered, malformed, tool_limit, length, ..."),
    "unavailable": Column(pa.string(), "why the tree was dropped; null for those that count"),
    "calls": Column(pa.list_(pa.string()), "tools whose results it read, shared ones included"),
    "turns": Column(pa.list_(TURN), "steps of the environment, shared ones included; see TURN"),
    "discarded_tokens": Column(pa.int32(), "sampled in turns that a tool's fault discarded"),
    "scoring_age": Column(pa.int32(), "optimiser steps from sampling to the newest scoring pass"),
    "prompt_ids": Column(INTS, "token ids before the response; null if restricted"),
    "token_ids": Column(INTS, "(T,) the response, sampled and observed; null if restricted"),
    "text": Column(pa.string(), "the response's; null if restricted"),
    "token_ends": Column(INTS, "(T,) characters of `text` up to each token's end"),
    "mask": Column(pa.list_(pa.bool_()), "(T,) true where the policy sampled the token"),
    "sampler_logprobs": Column(FLOATS, "(T,) nats, as sampled"),
    "sampler_entropies": Column(FLOATS, "(T,) nats, of the distribution sampled from"),
    "old_logprobs": Column(FLOATS, "(T,) nats, by the policy before the step's first update"),
    "logprobs": Column(FLOATS, "(T,) nats, by the newest scoring pass; null without one"),
    "entropies": Column(FLOATS, "(T,) nats, of the same pass"),
    "reference_logprobs": Column(FLOATS, "(T,) nats, by the reference; null without one"),
    "future_values": Column(FLOATS, "(T,) Omega of APPO; null where it is undefined"),
    "branch_scores": Column(FLOATS, "(T,) branching score; null where it is undefined"),
    "advantages": Column(FLOATS, "(T,) credit; null where the method gave none"),
    "weights": Column(FLOATS, "(T,) what each token's loss counted; 0 where it was not trained on"),
}
"""Name -> type and meaning. T counts the tokens of the response, without those of the prompt.
On observed tokens only `mask`, `token_ids` and `token_ends` of the (T,) columns have a meaning."""

TURN_MEANINGS = {
    "begin, action_end, end": "first response token, end of what was sampled, end of the result",
    "stop": "what ended the sampling: tag, eos or length",
    "action, observation": "as the environment read and gave them; null if restricted",
    "tool": "what was executed; null where nothing was",
    "argument": "of the call; null if restricted",
    "ok": "false where the argument failed",
    "seconds": "wall clock of the call",
    "free": "true where a recording answered",
}

SCHEMA = pa.schema(
    [(name, column.kind) for name, column in COLUMNS.items()],
    metadata={"appo_rollouts": str(VERSION)},
)


def rollout_file(folder: Path, iteration: int) -> Path:
    """The file that holds an iteration's trees."""
    return folder / "rollouts" / f"{iteration:06d}.parquet"


def write_rollouts(
    folder: Path,
    iteration: int,
    trees: Sequence[RolloutTree],
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """Write an iteration's trees atomically; delete later files, which are of discarded work."""
    pieces: dict[int, str] = {}
    rows = (
        _build_row(iteration, index, tree, trajectory)
        | _build_text_columns(tree, trajectory, tokenizer, pieces)
        for index, tree in enumerate(trees)
        for trajectory in tree.trajectories
    )
    write_rows(folder, iteration, rows)
    for later in (folder / "rollouts").glob("[0-9]*.parquet"):
        if int(later.stem) > iteration:
            later.unlink()


def write_rows(folder: Path, iteration: int, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows that have every column."""
    target = rollout_file(folder, iteration)
    target.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(list(rows), schema=SCHEMA)
    unfinished = target.with_name(f".{target.name}")  # readers of the folder ignore dot files
    with unfinished.open("wb") as file:
        pq.write_table(table, file, compression="zstd", use_dictionary=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(target)


def list_iterations(folder: Path) -> list[int]:
    """Iterations whose trees are in a run's folder.

    Raises:
        RolloutFileError: there are none.
    """
    iterations = sorted(int(path.stem) for path in (folder / "rollouts").glob("[0-9]*.parquet"))
    if iterations:
        return iterations
    if list((folder / "rollouts").glob("*.jsonl")):
        raise RolloutFileError(
            f"the rollouts of {folder} were written by an earlier version, as lines of JSON; "
            "train anew to have them in this one's form"
        )
    raise RolloutFileError(f"{folder} holds no rollouts/*.parquet; give the folder of a run")


def read_rows(folder: Path, iteration: int) -> list[dict[str, Any]]:
    """Read an iteration's rows, each a dict with every column.

    Raises:
        RolloutFileError: there is no such file, or it has another version.
    """
    path = rollout_file(folder, iteration)
    if not path.exists():
        stored = list_iterations(folder)
        raise RolloutFileError(
            f"no rollouts of iteration {iteration} in {folder}; it has {stored[0]} to {stored[-1]}"
        )
    table = pq.read_table(path, partitioning=None)
    version = (table.schema.metadata or {}).get(b"appo_rollouts", b"none").decode()
    if version != str(VERSION):
        raise RolloutFileError(f"{path} is of schema {version}; this version reads {VERSION}")
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row["reward_terms"] = dict(row["reward_terms"])
    return rows


def _build_row(
    iteration: int, index: int, tree: RolloutTree, trajectory: Trajectory
) -> dict[str, Any]:
    """A row without the text columns."""
    parent, state, diagnostics = trajectory.parent, trajectory.state, trajectory.diagnostics
    return dict.fromkeys(COLUMNS) | {
        "version": VERSION,
        "iteration": iteration,
        "tree": index,
        "benchmark": state.benchmark,
        "revision": state.revision,
        "split": state.split,
        "task": tree.task.id,
        "path": trajectory.path,
        "parent": None if parent is None else parent.trajectory.path,
        "position": None if parent is None else parent.position,
        "score": None if parent is None else parent.score,
        "reward": trajectory.reward,
        "reward_terms": list(trajectory.reward_terms.items()),
        "done": trajectory.done,
        "stop": state.stop,
        "unavailable": tree.unavailable,
        "calls": state.calls,
        "turns": _build_turns(trajectory, tree.task.restricted),
        "discarded_tokens": trajectory.discarded_tokens,
        "scoring_age": diagnostics.age,
        "mask": trajectory.response_mask,
        "sampler_logprobs": trajectory.sampler_logprobs,
        "sampler_entropies": trajectory.sampler_entropies,
        "old_logprobs": to_floats(trajectory.old_logprobs),
        "logprobs": to_floats(diagnostics.logprobs),
        "entropies": to_floats(diagnostics.entropies),
        "reference_logprobs": to_floats(trajectory.reference_logprobs),
        "future_values": to_floats(diagnostics.future_values),
        "branch_scores": to_floats(diagnostics.scores),
        "advantages": to_floats(diagnostics.advantages),
        "weights": to_floats(diagnostics.weights),
    }


def _build_text_columns(
    tree: RolloutTree,
    trajectory: Trajectory,
    tokenizer: PreTrainedTokenizerBase,
    pieces: dict[int, str],
) -> dict[str, Any]:
    """Columns with text or token ids; none for a restricted task.

    Args:
        tree: has the task.
        trajectory: one of its trajectories.
        tokenizer: decodes the response.
        pieces: cache of `decode_with_ends`.
    """
    if tree.task.restricted:
        return {}
    ids = trajectory.response_ids
    text, ends = decode_with_ends(ids, tokenizer, pieces)
    return {
        "question": tree.task.question,
        "answers": tree.task.answers,
        "prompt_ids": trajectory.prompt_ids,
        "token_ids": ids,
        "text": text,
        "token_ends": ends,
    }


def _build_turns(trajectory: Trajectory, restricted: bool) -> list[dict[str, Any]]:
    turns, begin = [], 0
    next_states = [*(turn.state for turn in trajectory.turns[1:]), trajectory.state]
    # Not strict: a trajectory without turns still has one state.
    for turn, state in zip(trajectory.turns, next_states, strict=False):
        texts = state.transcript[len(turn.state.transcript) :]
        turns.append(_build_turn(turn, begin, texts, restricted))
        begin += len(turn)
    return turns


def _build_turn(turn: Turn, begin: int, texts: Sequence[str], restricted: bool) -> dict[str, Any]:
    call, action_end = turn.call, begin + len(turn.action.token_ids)
    return {
        "begin": begin,
        "action_end": action_end,
        "end": begin + len(turn),
        "stop": turn.action.stop,
        "action": None if restricted or not texts else texts[0],
        "observation": None if restricted or len(texts) < 2 else texts[1],
        "tool": None if call is None else call.tool,
        "argument": None if call is None or restricted else call.argument,
        "ok": None if call is None else call.ok,
        "seconds": None if call is None else call.seconds,
        "free": None if call is None else call.free,
    }


def to_floats(values: Tensor | None) -> list[float] | None:
    """Turn a tensor into a column's value; None stays None."""
    return None if values is None else values.tolist()


def main() -> None:
    """Print the schema."""
    width = max(map(len, COLUMNS))
    for name, column in COLUMNS.items():
        kind = "list<TURN>" if name == "turns" else str(column.kind).replace("element: ", "")
        print(f"{name:<{width}}  {kind:<20}  {column.meaning}")  # noqa: T201
    print("\nTURN")  # noqa: T201
    for name, meaning in TURN_MEANINGS.items():
        print(f"{name:<{width + 22}}  {meaning}")  # noqa: T201


if __name__ == "__main__":
    main()
