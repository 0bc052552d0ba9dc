"""The end of a run: what was learned, what it cost, where its files are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from learners.console import Console
from learners.intervals import bootstrap_mean, wilson
from learners.metrics import PEAK
from learners.run_folder import (
    checkpoint_folder,
    evaluation_costs,
    list_checkpoints,
    read_metrics,
)
from learners.runs.memory import size_of

COSTS = (
    ("tokens sampled", "ledger/sampled_tokens"),
    ("tokens reused by branching", "ledger/reused_tokens"),
    ("tokens trained", "ledger/trained_tokens"),
    ("tool calls executed", "ledger/tool_calls"),
    ("tool calls inherited by branches", "ledger/inherited_calls"),
)


RARE_COSTS = (
    ("tool calls that cost nothing", "ledger/free_calls"),
    ("verdicts of the judge", "ledger/judge_calls"),
    ("verdicts it had given before", "ledger/judge_cached"),
    ("requests to it that failed", "ledger/judge_faults"),
    ("tokens of discarded work", "ledger/lost_tokens"),
    ("tool calls of discarded work", "ledger/lost_calls"),
    ("verdicts of discarded work", "ledger/lost_judge_calls"),
    ("trees that lost their tools", "tools/unavailable_trees"),
)
"""Shown where there are any."""


def final_report(folder: Path, narrator: Console) -> None:
    """Print the tables of a finished run and draw its reward curve."""
    metrics = read_metrics(folder)
    before, after = (_read(folder / f"evaluation-{name}.json") for name in ("before", "after"))
    if before is not None and after is not None:
        narrator.say(_learned(before, after))
    narrator.say(_costs(metrics, evaluation_costs(folder)))
    _draw_curve(folder, metrics)
    newest = (list_checkpoints(folder) or [0])[-1]
    narrator.say(
        f"files: {folder}/config.json, metrics.jsonl, reward.png, rollouts/, "
        f"{checkpoint_folder(folder, newest)} (give it to --model)"
    )


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def _learned(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Accuracy and reward on the same held-out tasks, with paired intervals."""
    first = {row["task"]: row for row in before["tasks"]}
    pairs = [(first[row["task"]], row) for row in after["tasks"] if row["task"] in first]
    table = Table(title=f"learned: {len(pairs)} held-out test tasks, 95 % intervals")
    for column in ("", "before", "after", "difference (paired)"):
        table.add_column(column)
    table.add_row("accuracy", *_accuracy(pairs))
    means = [bootstrap_mean([p[i]["reward"] for p in pairs]) for i in (0, 1)]
    change = bootstrap_mean([b["reward"] - a["reward"] for a, b in pairs])
    table.add_row("reward", *map(str, means), str(change))
    for name in ("tool_calls", "tokens"):
        means = [bootstrap_mean([float(p[i][name]) for p in pairs]) for i in (0, 1)]
        change = bootstrap_mean([float(b[name] - a[name]) for a, b in pairs])
        table.add_row(
            f"{name.replace('_', ' ')} per task",
            *(f"{m.value:.1f}" for m in means),
            f"{change.value:+.1f}",
        )
    return table


def _accuracy(pairs: list[tuple[dict[str, Any], dict[str, Any]]]) -> list[str]:
    """Before, after and their difference; what only a judge can grade has none of them."""
    if not all(row.get("judged", True) for pair in pairs for row in pair):
        return ["not judged", "not judged", "-"]
    rates = [wilson(sum(p[i]["score"] for p in pairs), len(pairs)) for i in (0, 1)]
    change = bootstrap_mean([b["score"] - a["score"] for a, b in pairs])
    return [*map(str, rates), str(change)]


def _costs(metrics: list[dict[str, Any]], evaluations: Mapping[str, float]) -> Table:
    """What training cost, and beside it what evaluations did, where they did anything."""

    def total(name: str) -> float:
        return sum(float(m.get(name, 0.0)) for m in metrics)

    table = Table(title=f"cost of {len(metrics)} iterations, and of the run's evaluations")
    table.add_column("")
    table.add_column("training", justify="right")
    table.add_column("evaluations", justify="right")

    def row(label: str, name: str, form: str = ",.0f") -> None:
        other = format(evaluations[name], form) if name in evaluations else "-"
        table.add_row(label, format(total(name), form), other)

    for label, name in COSTS:
        row(label, name)
    if any("ledger/cost" in m for m in (*metrics, evaluations)):
        row("cost of calls and verdicts", "ledger/cost", ",.4f")
    for label, name in RARE_COSTS:
        if total(name) or evaluations.get(name):
            row(label, name)
    if any(PEAK in m for m in metrics):
        table.add_row("peak memory", size_of(max(int(m.get(PEAK, 0)) for m in metrics)), "-")
    table.add_row("seconds", f"{total('seconds/iteration'):,.1f}", "-")
    for phase in ("sample", "tools", "score", "update"):
        row(f"  {phase}", f"seconds/{phase}", ",.1f")
    return table


def _draw_curve(folder: Path, metrics: list[dict[str, Any]]) -> None:
    if not metrics:
        return
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.add_subplot()
    steps = [m["iteration"] + 1 for m in metrics]
    rewards = [m.get("reward/mean", float("nan")) for m in metrics]
    axes.plot(steps, rewards, color="0.7", linewidth=1, label="iteration")
    window = max(1, len(rewards) // 10)
    smooth = [
        sum(rewards[max(0, i - window + 1) : i + 1]) / min(i + 1, window)
        for i in range(len(rewards))
    ]
    axes.plot(steps, smooth, color="C0", label=f"mean of {window}")
    axes.set_xlabel("iteration")
    axes.set_ylabel("reward of initial rollouts")
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(folder / "reward.png")
