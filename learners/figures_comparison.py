"""Figures of a comparison, as PNG and SVG: curves with bands, pass@k, cost, profiles, rewards.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in dashes too.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from learners.compare_report import PLACES, THRESHOLDS

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")
DASHES = ("-", "--", "-.", ":")
FEW = 6
"""Methods up to which each has a band; more would hide one another."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COSTS = {"flops": "policy FLOPs in training", "tokens": "tokens sampled in training"}
SUFFIXES = ("png", "svg")
Axes = Any
Rewards = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method its runs, each with `tokens` and `rewards` by iteration."""


def draw_all(report: Mapping[str, Any], rewards: Rewards, folder: Path) -> list[Path]:
    """Every figure of a report.

    Args:
        report: of `learners.compare_report.report`.
        rewards: see `reward_curves`.
        folder: where they are written.

    Returns:
        The files.
    """
    unit = next(iter(report["methods"].values()))["curve"]["unit"]
    spent = "tokens" if unit == "flops" else "flops"  # the budget's own unit is the same for all
    made: tuple[tuple[str, Callable[[Axes], None], str, str], ...] = (
        ("curves", lambda a: curves(a, report), unit, "validation accuracy"),
        ("pass_at_k", lambda a: pass_at_k(a, report["methods"]), "k", "pass@k, test tasks"),
        ("cost", lambda a: cost(a, report["methods"], spent), COSTS[spent], "final accuracy"),
        ("profiles", lambda a: profiles(a, report["methods"]), "accuracy above", "share of runs"),
        ("rewards", lambda a: reward_curves(a, rewards), "tokens sampled", "reward of rollouts"),
    )
    return [path for name, draw, x, y in made for path in drawn(folder / name, draw, x, y)]


def drawn(target: Path, draw: Callable[[Axes], None], x: str, y: str) -> list[Path]:
    """One figure as PNG and SVG; the files.

    Args:
        target: path without a suffix.
        draw: puts the content on axes.
        x: label of the axis.
        y: label of the axis.
    """
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        named = len(axes.get_legend_handles_labels()[0])
        axes.legend(frameon=False, fontsize="small", ncols=1 if named <= FEW else 2)
    target.parent.mkdir(parents=True, exist_ok=True)
    files = [target.with_name(f"{target.name}.{suffix}") for suffix in SUFFIXES]
    # Equal numbers make equal files: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "appo-gym", "svg.fonttype": "none"}):
        figure.savefig(files[0], dpi=130, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of a method, by its place."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[(index + index // len(COLOURS)) % len(DASHES)],
        "linewidth": 1.6,
    }


def curves(axes: Axes, report: Mapping[str, Any]) -> None:
    """Learning curves with their 95 % bands over seeds and tasks."""
    few = len(report["methods"]) <= FEW
    for index, (label, found) in enumerate(report["methods"].items()):
        _banded(axes, found["curve"]["places"], found["curve"]["heights"], label, index, few)
    axes.set_ylim(bottom=0)


def pass_at_k(axes: Axes, methods: Mapping[str, Any]) -> None:
    """pass@k with 95 % intervals."""
    for index, (label, found) in enumerate(methods.items()):
        ks = [int(k) for k in found["pass_at"]]
        _banded(axes, ks, list(found["pass_at"].values()), label, index, len(methods) <= FEW)
    axes.set_xscale("log", base=2)
    axes.set_xticks(ks, [str(k) for k in ks])


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


def profiles(axes: Axes, methods: Mapping[str, Any]) -> None:
    """The share of seeds and levels above an accuracy."""
    for index, (label, found) in enumerate(methods.items()):
        _banded(axes, THRESHOLDS, found["profile"], label, index, len(methods) <= FEW)


def reward_curves(axes: Axes, rewards: Rewards) -> None:
    """Mean reward of initial rollouts, smoothed; the band is a deviation between seeds each way."""
    for index, (label, runs) in enumerate(rewards.items()):
        known = [run for run in runs if run["rewards"]]
        if not known:
            continue
        end = min(sum(run["tokens"]) for run in known)
        places = np.linspace(0, end, PLACES)
        lines = np.stack([_smooth(run, places) for run in known])
        middle, spread = lines.mean(axis=0), lines.std(axis=0)
        axes.plot(places, middle, label=label, **style(index))
        if len(known) > 1 and len(rewards) <= FEW:
            colour = COLOURS[index % len(COLOURS)]
            axes.fill_between(
                places, middle - spread, middle + spread, color=colour, alpha=0.15, linewidth=0
            )


def _smooth(run: Mapping[str, Any], places: Any) -> Any:  # noqa: ANN401 - arrays
    """A run's rewards at tokens sampled, each the mean of a tenth of the iterations."""
    rewards = np.array([np.nan if r is None else r for r in run["rewards"]], dtype=float)
    known = ~np.isnan(rewards)
    rewards, at = rewards[known], np.cumsum(run["tokens"])[known]
    window = max(1, len(rewards) // 10)
    means = [rewards[max(0, i - window + 1) : i + 1].mean() for i in range(len(rewards))]
    return np.interp(places, at, means)


def _banded(
    axes: Axes,
    places: Sequence[float],
    heights: Sequence[Mapping[str, float]],
    label: str,
    index: int,
    band: bool,
) -> None:
    axes.plot(places, [h["value"] for h in heights], label=label, **style(index))
    if band:
        low, high = ([h[name] for h in heights] for name in ("low", "high"))
        colour = COLOURS[index % len(COLOURS)]
        axes.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
