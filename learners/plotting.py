"""Lines with bands as PNG and SVG: on one pair of axes where they are few, else a panel for each.

Colours are Okabe and Ito's, which colour-blind readers tell apart; lines differ in dashes too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8A6D00")


DASHES = ("-", "--", "-.", ":")


FEW = 6
"""Lines up to which all share axes; the bands of more would hide one another."""


COLUMNS = 4
"""Panels beside one another."""


SUFFIXES = ("png", "svg")


Axes = Any


class Line(NamedTuple):
    """What is drawn of a method."""

    label: str
    places: Sequence[float]
    middle: Sequence[float]
    low: Sequence[float] | None = None
    """Of the band; None: there is none."""
    high: Sequence[float] | None = None


def nothing(axes: Axes) -> None:
    """Leave axes as they are."""


def many(axes: Axes) -> None:
    """Few places, told in thousands and millions."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def drawn_lines(
    target: Path,
    lines: Sequence[Line],
    x: str,
    y: str,
    prepare: Callable[[Axes], None] = nothing,
) -> list[Path]:
    """One figure of lines as PNG and SVG; the files.

    Args:
        target: path without a suffix.
        lines: up to FEW share axes; of more each has a panel, the others thin and grey behind it.
        x: label of the axis.
        y: label of the axis.
        prepare: called with all axes once their lines are drawn.
    """
    if len(lines) > FEW:
        return _panels(target, lines, x, y, prepare)

    def draw(axes: Axes) -> None:
        for index, line in enumerate(lines):
            _line(axes, line, index)
        prepare(axes)

    return drawn(target, draw, x, y)


def drawn(target: Path, draw: Callable[[Axes], None], x: str, y: str) -> list[Path]:
    """One figure on one pair of axes as PNG and SVG; the files.

    Args:
        target: path without a suffix.
        draw: puts the content on axes.
        x: label of the axis.
        y: label of the axis.
    """
    figure = _figure(6.4, 4)
    axes = figure.add_subplot()
    draw(axes)
    axes.set_xlabel(x)
    axes.set_ylabel(y)
    axes.spines[["top", "right"]].set_visible(False)
    named = len(axes.get_legend_handles_labels()[0])
    if named:
        axes.legend(frameon=False, fontsize="small", ncols=1 if named <= FEW else 2)
    return _saved(figure, target)


def style(index: int) -> dict[str, Any]:
    """Colour and dashes of a method, by its place."""
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": DASHES[(index + index // len(COLOURS)) % len(DASHES)],
        "linewidth": 1.6,
    }


def _panels(
    target: Path, lines: Sequence[Line], x: str, y: str, prepare: Callable[[Axes], None]
) -> list[Path]:
    rows = -(-len(lines) // COLUMNS)
    figure = _figure(9, 0.5 + 1.9 * rows)
    every = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten()
    for index, line in enumerate(lines):
        axes = every[index]
        for other in lines:
            if other is not line:
                axes.plot(other.places, other.middle, color="0.75", linewidth=0.7, zorder=1)
        _line(axes, line, index)
        axes.set_title(line.label, fontsize="medium", color=style(index)["color"])
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize="small", labelbottom=index + COLUMNS >= len(lines))
        prepare(axes)
    for axes in every[len(lines) :]:
        axes.set_axis_off()
    figure.supxlabel(x, fontsize="medium")
    figure.supylabel(y, fontsize="medium")
    return _saved(figure, target)


def _line(axes: Axes, line: Line, index: int) -> None:
    axes.plot(line.places, line.middle, label=line.label, **style(index))
    if line.low is not None and line.high is not None:
        colour = style(index)["color"]
        axes.fill_between(line.places, line.low, line.high, color=colour, alpha=0.15, linewidth=0)


def _figure(width: float, height: float) -> Any:  # noqa: ANN401 - matplotlib's
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _saved(figure: Any, target: Path) -> list[Path]:  # noqa: ANN401 - matplotlib's
    import matplotlib as mpl

    target.parent.mkdir(parents=True, exist_ok=True)
    files = [target.with_name(f"{target.name}.{suffix}") for suffix in SUFFIXES]
    # Equal numbers make equal files: no date, no random names.
    with mpl.rc_context({"svg.hashsalt": "appo-gym", "svg.fonttype": "none"}):
        figure.savefig(files[0], dpi=130, metadata={"Software": None})
        figure.savefig(files[1], metadata={"Date": None, "Creator": None})
    return files
