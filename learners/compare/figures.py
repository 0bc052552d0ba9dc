"""Figures of a comparison: learning curves, pass@k, cost, profiles and rewards, with bands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learners.compare.report import FIRST_REWARDS, PLACES, THRESHOLDS
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


REWARDS = {
    FIRST_REWARDS: "reward of the rollouts prompts begin with\nband: a deviation between seeds",
    "rewards": "reward of initial rollouts\nband: a deviation between seeds",
}
"""What is told of a reward curve, by what it is of."""


Rewards = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method its runs, each with `tokens` and rewards by iteration."""


def draw_all(report: Mapping[str, Any], rewards: Rewards, folder: Path) -> list[Path]:
    """Every figure of a report.

    Args:
        report: of `learners.compare.report.report`.
        rewards: see `reward_lines`.
        folder: where they are written.

    Returns:
        The files.
    """
    methods, kind = report["methods"], report["rewards"]
    unit = next(iter(methods.values()))["curve"]["unit"]
    spent = "tokens" if unit == "flops" else "flops"  # the budget's own unit is the same for all
    heights = "validation accuracy, 95 % band"
    drawings = (
        draw_curves(folder / "curves", curve_lines(methods), unit, heights, use_short_numbers),
        drawn_pass_at_k(folder / "pass_at_k", methods, "pass@k of test tasks, 95 % band"),
        draw_figure(
            folder / "cost", lambda a: cost(a, methods, spent), COSTS[spent], "final accuracy"
        ),
        draw_curves(
            folder / "profiles",
            profile_lines(methods),
            "accuracy above",
            "share of runs, 95 % band",
        ),
        drawn_rewards(folder / "rewards", rewards, kind),
    )
    return [path for files in drawings for path in files]


def curve_lines(methods: Mapping[str, Any]) -> list[Curve]:
    """Learning curves with their 95 % bands over seeds and tasks."""
    return [
        _banded(label, found["curve"]["places"], found["curve"]["heights"])
        for label, found in methods.items()
    ]


def drawn_pass_at_k(target: Path, methods: Mapping[str, Any], y: str) -> list[Path]:
    """pass@k with 95 % intervals."""
    ks = [int(k) for k in next(iter(methods.values()))["pass_at"]]
    lines = [_banded(label, ks, [*found["pass_at"].values()]) for label, found in methods.items()]

    def doubling(axes: Axes) -> None:
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])

    return draw_curves(target, lines, "k", y, doubling)


def cost(axes: Axes, methods: Mapping[str, Any], unit: str = "flops") -> None:
    """Final accuracy against what training spent; the area of a point grows with tool calls."""
    most = max((found["spent"]["calls"] for found in methods.values()), default=0) or 1
    for index, (label, found) in enumerate(methods.items()):
        value, low, high = (found["accuracy"][name] for name in ("value", "low", "high"))
        place, colour = found["spent"][unit], COLOURS[index % len(COLOURS)]
        spread = [[max(0.0, value - low)], [max(0.0, high - value)]]
        axes.errorbar([place], [value], yerr=spread, color=colour, linewidth=1, capsize=3)
        size = 15 + 105 * found["spent"]["calls"] / most
        marker = MARKERS[index % len(MARKERS)]
        axes.scatter([place], [value], s=size, color=colour, alpha=0.6, marker=marker, label=label)
    axes.margins(x=0.2)


def profile_lines(methods: Mapping[str, Any]) -> list[Curve]:
    """The share of seeds and levels above an accuracy."""
    return [_banded(label, THRESHOLDS, found["profile"]) for label, found in methods.items()]


def drawn_rewards(target: Path, rewards: Rewards, kind: str) -> list[Path]:
    """Reward curves; `kind` is of REWARDS."""
    return draw_curves(
        target, reward_lines(rewards, kind), "tokens sampled", REWARDS[kind], use_short_numbers
    )


def reward_lines(rewards: Rewards, kind: str) -> list[Curve]:
    """Rewards of training, smoothed; the band is a deviation between seeds each way.

    Args:
        rewards: by method its runs.
        kind: which rewards of theirs.
    """
    found = []
    for label, runs in rewards.items():
        known = [run for run in runs if run[kind]]
        if not known:
            continue
        places = np.linspace(0, min(sum(run["tokens"]) for run in known), PLACES)
        lines = np.stack([_smooth(run, kind, places) for run in known])
        middle, spread = lines.mean(axis=0), lines.std(axis=0)
        band = (middle - spread, middle + spread) if len(known) > 1 else ()
        found.append(Curve(label, places.tolist(), middle.tolist(), *(x.tolist() for x in band)))
    return found


def _smooth(run: Mapping[str, Any], kind: str, places: Any) -> Any:  # noqa: ANN401 - arrays
    """A run's rewards at tokens sampled, each the mean of a tenth of the iterations."""
    rewards = np.array([np.nan if r is None else r for r in run[kind]], dtype=float)
    known = ~np.isnan(rewards)
    rewards, at = rewards[known], np.cumsum(run["tokens"])[known]
    return np.interp(places, at, smooth(rewards))


def _banded(label: str, places: Sequence[float], heights: Sequence[Mapping[str, float]]) -> Curve:
    middle, low, high = ([h[name] for h in heights] for name in ("value", "low", "high"))
    return Curve(label, places, middle, low, high)
