"""The report at the end of a run: what was learned, what it cost, where its files are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from learners.console import Console
from learners.intervals import bootstrap_mean, wilson
from learners.metrics import PEAK
from learners.plotting import new_figure, smooth, smoothing_window
from learners.run_folder import (
    checkpoint_folder,
    evaluation_costs,
    list_checkpoints,
    read_metrics,
)
from learners.runs.memory import format_bytes

COSTS = (
    ("tokens sampled", "ledger/sampled_tokens"),
    ("tokens reused by branching", "ledger/reused_tokens"),
    ("tokens trained", "ledger/trained_tokens"),
    ("tool calls executed", "ledger/tool_calls"),
    ("tool calls inherited by branches", "ledger/inherited_calls"),
)
"""Labels and metrics of costs that every run has."""

RARE_COSTS = (
    ("tool calls that cost nothing", "ledger/free_calls"),
    ("verdicts of the judge", "ledger/judge_calls"),
    ("verdicts from the cache", "ledger/judge_cached"),
    ("requests to the judge that failed", "ledger/judge_faults"),
    ("tokens of discarded work", "ledger/lost_tokens"),
    ("tool calls of discarded work", "ledger/lost_calls"),
    ("verdicts of discarded work", "ledger/lost_judge_calls"),
    ("trees that lost their tools", "tools/unavailable_trees"),
)
"""The same for costs that are shown only if they are not 0."""

Pair = tuple[dict[str, Any], dict[str, Any]]
"""A task's result before and after training."""


def print_report(folder: Path, console: Console) -> None:
    """Print the tables of a finished run and draw its reward curve."""
    metrics = read_metrics(folder)
    results = [folder / f"evaluation-{name}.json" for name in ("before", "after")]
    if all(path.exists() for path in results):
        before, after = (json.loads(path.read_text()) for path in results)
        console.say(_build_learning_table(before, after))
    console.say(_build_cost_table(metrics, evaluation_costs(folder)))
    _draw_curve(folder, metrics)
    newest = max(list_checkpoints(folder), default=0)
    console.say(
        f"files: {folder}/config.json, metrics.jsonl, reward.png, rollouts/, "
        f"{checkpoint_folder(folder, newest)} (give it to --model)"
    )


def _build_learning_table(before: dict[str, Any], after: dict[str, Any]) -> Table:
    """Compare accuracy and reward on the same held-out tasks, with paired intervals."""
    first = {row["task"]: row for row in before["tasks"]}
    pairs = [(first[row["task"]], row) for row in after["tasks"] if row["task"] in first]
    table = Table(title=f"learned: {len(pairs)} held-out test tasks, 95 % intervals")
    for column in ("", "before", "after", "difference (paired)"):
        table.add_column(column)
    table.add_row("accuracy", *_format_accuracy(pairs))
    means = [bootstrap_mean([pair[i]["reward"] for pair in pairs]) for i in (0, 1)]
    change = bootstrap_mean([b["reward"] - a["reward"] for a, b in pairs])
    table.add_row("reward", *map(str, means), str(change))
    for name in ("tool_calls", "tokens"):
        means = [bootstrap_mean([float(pair[i][name]) for pair in pairs]) for i in (0, 1)]
        change = bootstrap_mean([float(b[name] - a[name]) for a, b in pairs])
        table.add_row(
            f"{name.replace('_', ' ')} per task",
            *(f"{mean.value:.1f}" for mean in means),
            f"{change.value:+.1f}",
        )
    return table


def _format_accuracy(pairs: Sequence[Pair]) -> list[str]:
    """Format the accuracy before, after, and its change; none if only a judge can grade a task."""
    if not all(row.get("judged", True) for pair in pairs for row in pair):
        return ["not judged", "not judged", "-"]
    rates = [wilson(sum(pair[i]["score"] for pair in pairs), len(pairs)) for i in (0, 1)]
    change = bootstrap_mean([b["score"] - a["score"] for a, b in pairs])
    return [*map(str, rates), str(change)]


def _build_cost_table(
    metrics: Sequence[Mapping[str, Any]], evaluations: Mapping[str, float]
) -> Table:
    """The cost of training next to that of evaluations."""

    def total(name: str) -> float:
        return sum(float(m.get(name, 0.0)) for m in metrics)

    table = Table(title=f"cost of {len(metrics)} iterations, and of the run's evaluations")
    table.add_column("")
    table.add_column("training", justify="right")
    table.add_column("evaluations", justify="right")

    def add_row(label: str, name: str, form: str = ",.0f") -> None:
        of_evaluations = format(evaluations[name], form) if name in evaluations else "-"
        table.add_row(label, format(total(name), form), of_evaluations)

    for label, name in COSTS:
        add_row(label, name)
    if any("ledger/cost" in m for m in (*metrics, evaluations)):
        add_row("cost of calls and verdicts", "ledger/cost", ",.4f")
    for label, name in RARE_COSTS:
        if total(name) or evaluations.get(name):
            add_row(label, name)
    if any(PEAK in m for m in metrics):
        table.add_row("peak memory", format_bytes(max(int(m.get(PEAK, 0)) for m in metrics)), "-")
    table.add_row("seconds", f"{total('seconds/iteration'):,.1f}", "-")
    for phase in ("sample", "tools", "score", "update"):
        add_row(f"  {phase}", f"seconds/{phase}", ",.1f")
    return table


def _draw_curve(folder: Path, metrics: list[dict[str, Any]]) -> None:
    if not metrics:
        return
    figure = new_figure(6, 3.5)
    axes = figure.add_subplot()
    steps = [m["iteration"] + 1 for m in metrics]
    rewards = [m.get("reward/mean", float("nan")) for m in metrics]
    axes.plot(steps, rewards, color="0.7", linewidth=1, label="iteration")
    axes.plot(steps, smooth(rewards), color="C0", label=f"mean of {smoothing_window(len(steps))}")
    axes.set_xlabel("iteration")
    axes.set_ylabel("reward of initial rollouts")
    axes.legend(frameon=False)
    figure.savefig(folder / "reward.png")
