"""Collects what the viewer's page shows as JSON values: trees of some iterations, metrics of all.

A branch carries only its own tokens; the page takes shared ones from its parent. Numbers are
rounded: the page is for looking, rollout files are for computing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learners.errors import RolloutFileError
from learners.metrics import METRICS, find_entry
from learners.rollouts import list_iterations, read_rows
from learners.run_folder import evaluation_costs, read_metrics

RolloutRow = Mapping[str, Any]
"""A row of a rollout file: one trajectory."""

CURVES = ("reward/mean", "validation/score")
"""Metrics that are drawn over all iterations."""

AREAS = (
    "ledger/",
    "seconds/",
    "memory/",
    "reward/",
    "branch/",
    "group/",
    "advantage/",
    "score/",
)
"""Areas of metrics that are shown for an iteration."""

WITHHELD = "▯"
"""Text of a token of a restricted task."""


def collect_page_data(folder: Path, iterations: Sequence[int], max_bytes: int) -> dict[str, Any]:
    """Collect a run's data in the form that the page's scripts read.

    Args:
        folder: of the run.
        iterations: whose trees are shown; () shows none.
        max_bytes: of all trees as JSON; trees beyond it are left out and counted.

    Raises:
        RolloutFileError: there is no such run or iteration.
    """
    path = folder / "config.json"
    if not path.exists():
        raise RolloutFileError(f"{folder} holds no config.json; give the folder of a run")
    config = json.loads(path.read_text())
    lines = read_metrics(folder)
    return {
        "run": folder.name,
        "method": config.get("method", ""),
        "env": config.get("env", ""),
        "planned": config.get("iterations"),
        "done": len(lines),
        "clip": config.get("future_clip"),
        "iterations": _collect_iterations(folder, iterations, lines, max_bytes),
        "stored": _list_stored(folder),
        "curves": {name: _collect_curve(lines, name) for name in CURVES},
        "totals": _sum_up(lines),
        "evaluated": {n: round(v, 4) for n, v in evaluation_costs(folder).items()},
        "meanings": {entry: METRICS[entry] for entry in _list_entries(lines)},
    }


def _collect_iterations(
    folder: Path, iterations: Sequence[int], lines: Sequence[Mapping[str, Any]], max_bytes: int
) -> list[dict[str, Any]]:
    """Collect iterations with their trees and metrics; `max_bytes` is for all trees together."""
    metrics = {int(line["iteration"]): line for line in lines}
    collected = []
    for number in iterations:
        trees, left_out, size = _collect_trees(read_rows(folder, number), max_bytes)
        max_bytes -= size
        collected.append(
            {
                "number": number,
                "trees": trees,
                "leftOut": left_out,
                "metrics": _select_metrics(metrics.get(number, {})),
            }
        )
    return collected


def _collect_trees(rows: Sequence[RolloutRow], max_bytes: int) -> tuple[list[Any], int, int]:
    """Collect an iteration's trees up to a size.

    Returns:
        The trees, how many were left out, and the size of those that were not, in bytes.
    """
    groups: dict[int, list[RolloutRow]] = {}
    for row in rows:
        groups.setdefault(row["tree"], []).append(row)
    trees: list[Any] = []
    size = 0
    for index, group in enumerate(groups.values()):
        tree = _convert_tree(group)
        tree_size = len(json.dumps(tree, ensure_ascii=False).encode())
        if size + tree_size > max_bytes:
            return trees, len(groups) - index, size
        size += tree_size
        trees.append(tree)
    return trees, 0, size


def _convert_tree(rows: Sequence[RolloutRow]) -> dict[str, Any]:
    indices = {tuple(row["path"]): index for index, row in enumerate(rows)}
    first = rows[0]
    return {
        "task": first["task"],
        "question": first["question"],
        "answers": first["answers"],
        "unavailable": first["unavailable"],
        "prompt": len(first["prompt_ids"] or ()),
        "trajectories": [_convert_trajectory(row, indices) for row in rows],
    }


def _convert_trajectory(row: RolloutRow, indices: Mapping[tuple[int, ...], int]) -> dict[str, Any]:
    """Convert a row; `indices` are the tree's trajectories by their paths."""
    shared = row["position"] or 0
    exact = row["entropies"] is not None
    return {
        "path": row["path"],
        "parent": None if row["parent"] is None else indices[tuple(row["parent"])],
        "position": row["position"],
        "score": _round(row["score"]),
        "reward": _round(row["reward"]),
        "terms": {name: _round(value) for name, value in row["reward_terms"].items()},
        "stop": row["stop"],
        "done": row["done"],
        "age": row["scoring_age"],
        "tokens": _split_tokens(row)[shared:],
        "turns": [
            {name: turn[name] for name in ("begin", "action_end", "end", "tool", "argument", "ok")}
            | {"seconds": _round(turn["seconds"])}
            for turn in row["turns"]
        ],
        "exact": exact,
        "entropy": _pack(row["entropies" if exact else "sampler_entropies"], shared),
        "logprob": _pack(row["sampler_logprobs"], shared),
        "future": _pack(row["future_values"], shared),
        "branching": _pack(row["branch_scores"], shared),
        # From the first token: a branch has advantages of its own on shared tokens too.
        "advantage": _pack(row["advantages"], 0),
    }


def _split_tokens(row: RolloutRow) -> list[str]:
    """The text of each token, or a placeholder if the row's text is withheld."""
    if row["text"] is None:
        return [WITHHELD] * len(row["mask"])
    starts = [0, *row["token_ends"]]
    return [row["text"][a:b] for a, b in zip(starts, row["token_ends"], strict=False)]


def _pack(values: Sequence[float] | None, start: int) -> Any:  # noqa: ANN401 - JSON
    """Pack the values from `start` on: as one number if all are equal, null if there are none."""
    if values is None:
        return None
    rounded = [_round(value) for value in values[start:]]
    return rounded[0] if rounded and len(set(rounded)) == 1 else rounded


def _round(value: float | None) -> float | None:
    """Round to four significant digits; null for NaN and infinities, which JSON does not have."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _list_stored(folder: Path) -> list[int]:
    try:
        return list_iterations(folder)
    except RolloutFileError:
        return []


def _select_metrics(line: Mapping[str, Any]) -> dict[str, float]:
    return {n: v for n, v in line.items() if n.startswith(AREAS) and math.isfinite(v)}


def _list_entries(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Entries of METRICS that explain the metrics shown."""
    entries = {find_entry(name) for line in lines for name in _select_metrics(line)}
    return sorted(entry for entry in entries if entry is not None)


def _collect_curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    return [[line["iteration"], _round(line[name]) or 0.0] for line in lines if name in line]


def _sum_up(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Sum the costs of all iterations; for memory, take the maximum."""
    totals: dict[str, float] = {}
    for line in lines:
        for name, value in _select_metrics(line).items():
            if name.startswith(("ledger/", "seconds/")):
                totals[name] = round(totals.get(name, 0) + value, 4)
            if name.startswith("memory/"):
                totals[name] = max(totals.get(name, 0), value)
    return totals
