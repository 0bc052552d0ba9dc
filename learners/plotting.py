"""Curves with bands as PNG and SVG: few share one pair of axes, many get a panel each.

The colours are Okabe and Ito's, which colour-blind readers can tell apart; dashes differ too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")

DASHES = ("-", "--", "-.", ":")

MAX_ON_SHARED_AXES = 6
"""Curves that share axes at most; the bands of more would hide one another."""

COLUMNS = 4
"""Panels in a row."""

SUFFIXES = ("png", "svg")

Axes = Any
"""matplotlib's."""


class Curve(NamedTuple):
    """A method's curve, with a band if it has one."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float] | None = None
    """Lower edge of the band; None: no band."""
    high: Sequence[float] | None = None


def leave_unchanged(axes: Axes) -> None:
    """Do nothing; the default for axes that need no preparation."""


def use_short_numbers(axes: Axes) -> None:
    """Put few ticks on the x axis, with labels such as 50k and 2M."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def draw_curves(
    target: Path,
    curves: Sequence[Curve],
    x: str,
    y: str,
    prepare: Callable[[Axes], None] = leave_unchanged,
) -> list[Path]:
    """Draw one figure of curves and return its files.

    Args:
        target: path without a suffix.
        curves: up to MAX_ON_SHARED_AXES share axes. If there are more, each has a panel, with the
            others thin and grey behind it.
        x: label of the x axis.
        y: label of the y axis.
        prepare: called with all axes once their curves are drawn.
    """
    if len(curves) > MAX_ON_SHARED_AXES:
        return _draw_panels(target, curves, x, y, prepare)

    def draw(axes: Axes) -> None:
        for index, curve in enumerate(curves):
            _draw_curve(axes, curve, index)
        prepare(axes)

    return draw_figure(target, draw, x, y)


def draw_figure(target: Path, draw: Callable[[Axes], None], x: str, y: str) -> list[Path]:
    """Draw one figure on one pair of axes and return its files.

    Args:
        target: path without a suffix.
        draw: puts the content on the axes.
        x: label of the x axis.
        y: label of the y axis.
    """
    figure = new_figure(6.4, 4)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    entries = len(axes.get_legend_handles_labels()[0])
    if entries:
        columns = 1 if entries <= MAX_ON_SHARED_AXES else 2
        axes.legend(frameon=False, fontsize="small", ncols=columns)
    return _save(figure, target)


def style(index: int) -> dict[str, Any]:
    """Return the colour and dashes of the method at an index."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[(index + index // len(COLOURS)) % len(DASHES)],
        "linewidth": 1.6,
    }


def smoothing_window(count: int) -> int:
    """Return how many of a curve's values are averaged into one: a tenth of all."""
    return max(1, count // 10)


def smooth(values: Sequence[float] | NDArray[np.float64]) -> list[float]:
    """Average each value with those before it in the smoothing window."""
    array, window = np.asarray(values, dtype=float), smoothing_window(len(values))
    return [float(array[max(0, i - window + 1) : i + 1].mean()) for i in range(len(array))]


def new_figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib's
    """Return an empty figure, in inches. It is no part of pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _draw_panels(
    target: Path, curves: Sequence[Curve], x: str, y: str, prepare: Callable[[Axes], None]
) -> list[Path]:
    rows = -(-len(curves) // COLUMNS)
    figure = new_figure(9, 0.5 + 1.9 * rows)
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for index, curve in enumerate(curves):
        axes = panels[index]
        for other in curves:
            if other is not curve:
                axes.plot(other.x, other.y, color="0.75", linewidth=0.7, zorder=1)
        _draw_curve(axes, curve, index)
        axes.set_title(curve.label, fontsize="medium", color=style(index)["color"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="small", labelbottom=index + COLUMNS >= len(curves))
        prepare(axes)
    for axes in panels[len(curves) :]:
        axes.set_axis_off()
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return _save(figure, target)


def _draw_curve(axes: Axes, curve: Curve, index: int) -> None:
    axes.plot(curve.x, curve.y, label=curve.label, **style(index))
    if curve.low is not None and curve.high is not None:
        colour = style(index)["color"]
        axes.fill_between(curve.x, curve.low, curve.high, color=colour, alpha=0.15, linewidth=0)


def _save(figure: Any, target: Path) -> list[Path]:  # noqa: ANN401 - matplotlib's
    import matplotlib as mpl

    target.parent.mkdir(parents=True, exist_ok=True)
    files = [target.with_name(f"{target.name}.{suffix}") for suffix in SUFFIXES]
    # Equal numbers make equal files: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "appo-gym", "svg.fonttype": "none"}):
        figure.savefig(files[0], dpi=130, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files
