"""Figures of a comparison: learning curves, pass@k, cost, profiles and rewards, with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from learners.compare.report import (
    CURVE_POINTS,
    THRESHOLDS,
    MethodReport,
    Report,
    RewardHistory,
    RewardKind,
)
from learners.intervals import Interval
from learners.plotting import (
    COLOURS,
    Axes,
    Curve,
    draw_curves,
    draw_figure,
    smooth,
    use_short_numbers,
)

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

COSTS = {"flops": "policy FLOPs in training", "tokens": "tokens sampled in training"}

REWARD_LABELS: dict[RewardKind, str] = {
    "first_rewards": "reward of the rollouts prompts begin with\nband: a deviation between seeds",
    "rewards": "reward of initial rollouts\nband: a deviation between seeds",
}
"""Labels of the axis of reward curves, by their kind."""

RewardHistories = Mapping[str, Sequence[RewardHistory]]
"""Rewards of each method's runs, by label."""


def draw_all(report: Report, histories: RewardHistories, folder: Path) -> list[Path]:
    """Draw every figure of a report and return the files.

    Args:
        report: of a comparison.
        histories: rewards of its runs.
        folder: of the files.
    """
    methods = report.methods
    unit = next(iter(methods.values())).curve.unit
    cost = "tokens" if unit == "flops" else "flops"  # all spent the same of the budget's own unit
    accuracy = "validation accuracy, 95 % band"
    share = "share of runs, 95 % band"
    curves = [
        _banded_curve(label, method.curve.places, method.curve.heights)
        for label, method in methods.items()
    ]
    profiles = [
        _banded_curve(label, THRESHOLDS, method.profile) for label, method in methods.items()
    ]
    pass_at = {label: method.pass_at for label, method in methods.items()}
    figures = (
        draw_curves(folder / "curves", curves, unit, accuracy, use_short_numbers),
        draw_pass_at_k(folder / "pass_at_k", pass_at, "pass@k of test tasks, 95 % band"),
        draw_figure(
            folder / "cost",
            lambda axes: scatter_costs(axes, methods, cost),
            COSTS[cost],
            "final accuracy",
        ),
        draw_curves(folder / "profiles", profiles, "accuracy above", share),
        draw_rewards(folder / "rewards", histories, report.rewards),
    )
    return [path for files in figures for path in files]


def draw_pass_at_k(
    target: Path, methods: Mapping[str, Mapping[int, Interval]], y: str
) -> list[Path]:
    """Draw pass@k with 95 % intervals, by method and k, and return the files."""
    ks = list(next(iter(methods.values())))
    curves = [
        _banded_curve(label, ks, list(pass_at.values())) for label, pass_at in methods.items()
    ]

    def use_powers_of_two(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])

    return draw_curves(target, curves, "k", y, use_powers_of_two)


def scatter_costs(axes: Axes, methods: Mapping[str, MethodReport], unit: str = "flops") -> None:
    """Plot final accuracy against training cost; the area of a point grows with tool calls."""
    max_calls = max((method.spent["calls"] for method in methods.values()), default=0) or 1
    for index, (label, method) in enumerate(methods.items()):
        value, low, high = method.accuracy
        cost, colour = method.spent[unit], COLOURS[index % len(COLOURS)]
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([cost], [value], yerr=spread, color=colour, linewidth=1, capsize=3)
        size = 15 + 105 * method.spent["calls"] / max_calls
        marker = MARKERS[index % len(MARKERS)]
        axes.scatter([cost], [value], s=size, color=colour, alpha=0.6, marker=marker, label=label)
    axes.margins(x=0.2)


def draw_rewards(target: Path, histories: RewardHistories, kind: RewardKind) -> list[Path]:
    """Draw smoothed rewards of training and return the files."""
    curves = reward_curves(histories, kind)
    return draw_curves(target, curves, "tokens sampled", REWARD_LABELS[kind], use_short_numbers)


def reward_curves(histories: RewardHistories, kind: RewardKind) -> list[Curve]:
    """Average the smoothed rewards of each method's runs; the band is one deviation each way."""
    curves = []
    for label, group in histories.items():
        runs = [run for run in group if run.of_kind(kind)]
        if not runs:
            continue
        tokens = np.linspace(0, min(sum(run.tokens) for run in runs), CURVE_POINTS)
        rewards = np.stack([_interpolate_rewards(run, kind, tokens) for run in runs])
        middle, spread = rewards.mean(axis=0), rewards.std(axis=0)
        band = (middle - spread, middle + spread) if len(runs) > 1 else ()
        curves.append(Curve(label, tokens.tolist(), middle.tolist(), *(x.tolist() for x in band)))
    return curves


def _interpolate_rewards(
    run: RewardHistory, kind: RewardKind, tokens: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return a run's smoothed rewards at numbers of tokens sampled."""
    rewards = np.array([np.nan if r is None else r for r in run.of_kind(kind)], dtype=float)
    recorded = ~np.isnan(rewards)
    return np.interp(tokens, np.cumsum(run.tokens)[recorded], smooth(rewards[recorded]))


def _banded_curve(label: str, x: Sequence[float], intervals: Sequence[Interval]) -> Curve:
    y, low, high = zip(*intervals, strict=True)
    return Curve(label, x, y, low, high)
