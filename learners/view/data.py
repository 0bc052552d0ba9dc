"""What the viewer's page shows, as values of JSON: trees of some iterations, metrics of all.

A branch holds its own tokens; what it shares is its parent's. Numbers are rounded: the page is for
looking, rollout files are for computing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learners.errors import RolloutFileError
from learners.metrics import METRICS, documented
from learners.rollouts import list_iterations, read_rows
from learners.run_folder import evaluation_costs, read_metrics

Row = Mapping[str, Any]

CURVES = ("reward/mean", "validation/score")
"""Metrics that are drawn over all iterations."""


SHOWN = (
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


def page_data(folder: Path, iterations: Sequence[int], limit: int) -> dict[str, Any]:
    """A run as the page takes it.

    Args:
        folder: of the run.
        iterations: whose trees are shown; () shows none.
        limit: most bytes of trees as JSON; trees beyond it are left out and counted.

    Raises:
        RolloutFileError: there is no such run or iteration.
    """
    path = folder / "config.json"
    if not path.exists():
        raise RolloutFileError(f"{folder} holds no config.json; give the folder of a run")
    config = json.loads(path.read_text())
    lines = read_metrics(folder)
    by_number = {int(line["iteration"]): line for line in lines}
    shown, left = [], limit
    for number in iterations:
        trees, left_out, size = _trees(read_rows(folder, number), left)
        left -= size
        shown.append(
            {
                "number": number,
                "trees": trees,
                "leftOut": left_out,
                "metrics": _shown(by_number.get(number, {})),
            }
        )
    return {
        "run": folder.name,
        "method": config.get("method", ""),
        "env": config.get("env", ""),
        "planned": config.get("iterations"),
        "done": len(lines),
        "clip": config.get("future_clip"),
        "iterations": shown,
        "stored": _stored(folder),
        "curves": {name: _curve(lines, name) for name in CURVES},
        "totals": _totals(lines),
        "evaluated": {n: round(v, 4) for n, v in evaluation_costs(folder).items()},
        "meanings": {name: METRICS[name] for name in _names(lines)},
    }


def _stored(folder: Path) -> list[int]:
    try:
        return list_iterations(folder)
    except RolloutFileError:
        return []


def _trees(rows: Sequence[Row], limit: int) -> tuple[list[Any], int, int]:
    """Trees of an iteration, how many were left out, bytes of those that were not."""
    groups: dict[int, list[Row]] = {}
    for row in rows:
        groups.setdefault(row["tree"], []).append(row)
    found: list[Any] = []
    size = 0
    for index, group in enumerate(groups.values()):
        tree = _tree(group)
        more = len(json.dumps(tree, ensure_ascii=False).encode())
        if size + more > limit:
            return found, len(groups) - index, size
        size += more
        found.append(tree)
    return found, 0, size


def _tree(rows: Sequence[Row]) -> dict[str, Any]:
    places = {tuple(row["path"]): place for place, row in enumerate(rows)}
    first = rows[0]
    return {
        "task": first["task"],
        "question": first["question"],
        "answers": first["answers"],
        "unavailable": first["unavailable"],
        "prompt": len(first["prompt_ids"] or ()),
        "trajectories": [_trajectory(row, places) for row in rows],
    }


def _trajectory(row: Row, places: Mapping[tuple[int, ...], int]) -> dict[str, Any]:
    shared = row["position"] or 0
    exact = row["entropies"] is not None
    return {
        "path": row["path"],
        "parent": None if row["parent"] is None else places[tuple(row["parent"])],
        "position": row["position"],
        "score": _round(row["score"]),
        "reward": _round(row["reward"]),
        "terms": {name: _round(value) for name, value in row["reward_terms"].items()},
        "stop": row["stop"],
        "done": row["done"],
        "age": row["scoring_age"],
        "tokens": _texts(row)[shared:],
        "turns": [
            {name: turn[name] for name in ("begin", "action_end", "end", "tool", "argument", "ok")}
            | {"seconds": _round(turn["seconds"])}
            for turn in row["turns"]
        ],
        "exact": exact,
        "entropy": _packed(row["entropies" if exact else "sampler_entropies"], shared),
        "logprob": _packed(row["sampler_logprobs"], shared),
        "future": _packed(row["future_values"], shared),
        "branching": _packed(row["branch_scores"], shared),
        "advantage": _packed(row["advantages"], 0),
    }


def _texts(row: Row) -> list[str]:
    """Text of each token; a mark for what is withheld."""
    if row["text"] is None:
        return ["▯"] * len(row["mask"])
    begins = [0, *row["token_ends"]]
    return [row["text"][a:b] for a, b in zip(begins, row["token_ends"], strict=False)]


def _packed(values: Sequence[float] | None, begin: int) -> Any:  # noqa: ANN401 - JSON
    """Values from a position on: one number where all are the same, null where there are none."""
    if values is None:
        return None
    found = [_round(value) for value in values[begin:]]
    return found[0] if found and len(set(found)) == 1 else found


def _round(value: float | None) -> float | None:
    """Four significant digits; null for what is no number."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.4g}")


def _shown(line: Mapping[str, Any]) -> dict[str, float]:
    return {n: v for n, v in line.items() if n.startswith(SHOWN) and math.isfinite(v)}


def _names(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    found = {documented(name) for line in lines for name in _shown(line)}
    return sorted(name for name in found if name is not None)


def _curve(lines: Sequence[Mapping[str, Any]], name: str) -> list[list[float]]:
    return [[line["iteration"], _round(line[name]) or 0.0] for line in lines if name in line]


def _totals(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What all iterations cost together; of memory the most."""
    found: dict[str, float] = {}
    for line in lines:
        for name, value in _shown(line).items():
            if name.startswith(("ledger/", "seconds/")):
                found[name] = round(found.get(name, 0) + value, 4)
            if name.startswith("memory/"):
                found[name] = max(found.get(name, 0), value)
    return found
