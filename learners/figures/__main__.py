"""Figures of runs: where agents hesitate and decide, which words, rewards, pass@k.

Each command prints its numbers and writes a PNG and an SVG; tokens and words write their table too:

    python -m learners.figures tokens runs/appo
    python -m learners.figures words runs/appo
    python -m learners.figures rewards runs/appo-0 runs/appo-1 runs/arpo-0 runs/arpo-1
    python -m learners.figures pass-at-k results/lab --methods appo arpo
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.table import Table

from learners.compare import (
    RewardHistory,
    draw_pass_at_k,
    draw_rewards,
    format_table,
    pass_at_table,
    read_report,
    reward_kind,
)
from learners.console import Console, report_errors
from learners.errors import UsageError
from learners.plotting import COLOURS, Axes, draw_figure, style
from learners.run_folder import read_metrics

METHOD = "learners.figures"

Folder = Annotated[Path, tyro.conf.Positional]


def tokens(
    run: Folder, share: float = 0.1, last: int = 10, most: int = 15, out: str = "figures/tokens"
) -> None:
    """Draw where tokens of high entropy and of high branching score are relative to tool calls.

    Args:
        run: folder of a run of learners.appo.
        share: share of a rollout's tokens that count as high.
        last: number of its last iterations that count.
        most: largest distance from a call that is drawn, in tokens.
        out: path of the figure without its suffix.
    """
    # Loads torch, which the other commands and --help do without.
    from learners.figures.tokens import by_distance, lifts, locate_tokens, scored_rows

    located = list(locate_tokens(scored_rows(run, last), share))
    title = f"{run.name}: {len(located):,} tokens; likelier than any token to be there, 95 %"
    names = ("place", "of all tokens", f"top {share:.0%} by entropy", "by score")
    rows = [
        (region, f"{lift.tokens:.3f}", str(lift.entropy), str(lift.score))
        for region, lift in lifts(located).items()
    ]
    before, after = by_distance(located, "until", most), by_distance(located, "since", most)

    def draw(axes: Axes) -> None:
        for index, kind in enumerate(("entropy", "score")):
            looks = {"label": f"top {share:.0%} by {kind}", **style(index)}
            axes.plot(range(-most - 1, 0), before[kind][::-1], marker=".", **looks)
            axes.plot(range(1, most + 2), after[kind], marker=".", **looks | {"label": None})
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.axvspan(-0.9, 0.9, color="0.9")

    label = "tokens before the end of a call | after its result"
    print_files(draw_figure(Path(out), draw, label, "times as likely as any token"))
    write_table(out, title, names, rows)


def words(
    run: Folder, top: int = 20, least: int = 10, last: int = 10, out: str = "figures/words"
) -> None:
    """Rank words by entropy and by branching score.

    Args:
        run: folder of a run of learners.appo.
        top: number of words in each ranking.
        least: number of times that a word must occur to count.
        last: number of the last iterations that count.
        out: path of the figure without its suffix.
    """
    # Loads torch, which the other commands and --help do without.
    from learners.figures.tokens import average_words, scored_rows

    averages = average_words(scored_rows(run, last), least)
    if not averages:
        raise UsageError(f"no word is said {least} times in the last {last} iterations of {run}")
    rankings = {
        kind: sorted(averages, key=lambda word: (-getattr(word, kind), word.text))[:top]
        for kind in ("entropy", "score")
    }
    title = f"{run.name}: {len(averages)} words said at least {least} times"
    names = ("by entropy", "nats", "times", "by score", "score", "times ")
    rows = [
        (
            *(one.text, f"{one.entropy:.3f}", str(one.times)),
            *(other.text, f"{other.score:.3f}", str(other.times)),
        )
        for one, other in zip(*rankings.values(), strict=True)
    ]

    def draw(axes: Axes) -> None:
        for index, (kind, ranking) in enumerate(rankings.items()):
            highest = max(getattr(ranking[0], kind), 1e-9)
            for rank, word in enumerate(ranking):
                size = 6 + 8 * max(0.0, getattr(word, kind)) / highest
                position = (index + 0.05, 1 - (rank + 0.5) / top)
                text = word.text.replace("$", r"\$")  # or matplotlib reads it as a formula
                axes.annotate(text, position, fontsize=size, color=COLOURS[index], va="center")
        axes.set_xlim(0, 2)
        axes.set_ylim(0, 1)
        axes.set_xticks([0.5, 1.5], ["by entropy", "by branching score"])
        axes.set_yticks([])

    print_files(draw_figure(Path(out), draw, "", ""))
    write_table(out, title, names, rows)


def rewards(
    runs: Annotated[list[Path], tyro.conf.Positional], out: str = "figures/rewards"
) -> None:
    """Draw reward curves; the band is a deviation between a method's runs each way.

    Args:
        runs: folders of runs; those of one method are its seeds.
        out: path of the figure without its suffix.
    """
    groups: defaultdict[str, list[RewardHistory]] = defaultdict(list)
    for run in runs:
        config = run / "config.json"
        if not config.exists():
            raise UsageError(f"{run} is no folder of a run")
        lines = read_metrics(run)
        history = RewardHistory(
            tokens=[line.get("ledger/sampled_tokens", 0) for line in lines],
            rewards=[line.get("reward/mean") for line in lines],
            first_rewards=[line.get("reward/first") for line in lines],
        )
        groups[json.loads(config.read_text())["method"].removeprefix("learners.")].append(history)
    kind = reward_kind(groups)
    for label, group in groups.items():
        last = [[r for r in history.of_kind(kind) if r is not None][-10:] for history in group]
        means = ", ".join(f"{sum(x) / len(x):+.3f}" for x in last if x)
        Console().say(f"{label}: mean reward of each run's last ten iterations {means}")
    print_files(draw_rewards(Path(out), groups, kind))


def pass_at_k(
    comparison: Folder, methods: tuple[str, ...] = ("appo", "arpo"), out: str = "figures/pass_at_k"
) -> None:
    """Draw pass@k of some methods of a comparison.

    Args:
        comparison: folder of its report, such as results/lab.
        methods: labels of methods of the comparison.
        out: path of the figure without its suffix.
    """
    path = comparison / "report.json"
    reports = read_report(path).methods
    unknown = [label for label in methods if label not in reports]
    if unknown or not methods:
        raise UsageError(f"{path} has no method {', '.join(unknown)}; it has {', '.join(reports)}")
    pass_at = {label: reports[label].pass_at for label in methods}
    Console().say(pass_at_table(pass_at))
    print_files(draw_pass_at_k(Path(out), pass_at, "pass@k"))


def write_table(out: str, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table, and write it as Markdown next to the figure."""
    table = Table(*names, title=title)
    for row in rows:
        table.add_row(*row)
    Console().say(table)
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    Path(f"{out}.md").write_text(f"{title}.\n\n{format_table(names, cells)}\n", "utf-8")


def print_files(files: Sequence[Path]) -> None:
    """Print the paths of a figure."""
    Console().say(f"files: {', '.join(map(str, files))}")


COMMANDS: dict[str, Callable[..., None]] = {
    "tokens": tokens,
    "words": words,
    "rewards": rewards,
    "pass-at-k": pass_at_k,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors(METHOD, arguments):
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=list(arguments), prog=f"python -m {METHOD}", description=__doc__
        )


if __name__ == "__main__":
    main()
