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
from typing import Annotated, Any

import tyro

METHOD = "learners.figures"


Folder = Annotated[Path, tyro.conf.Positional]


def tokens(
    run: Folder, share: float = 0.1, last: int = 10, most: int = 15, out: str = "figures/tokens"
) -> list[Path]:
    """Where tokens of high entropy and of high branching score lie relative to tool calls.

    Args:
        run: folder of a run of learners.appo.
        share: of a rollout's tokens that are called high.
        last: how many of its last iterations count.
        most: tokens from a call that are drawn.
        out: path of the figure without its suffix.
    """
    from learners.figures.tokens import by_distance, lifts, scored_rows, tokens_of

    found = list(tokens_of(scored_rows(run, last), share))
    title = f"{run.name}: {len(found):,} tokens; likelier than any token to be there, 95 %"
    names = ("place", "of all tokens", f"top {share:.0%} by entropy", "by score")
    table = [
        (place, f"{row['tokens']:.3f}", str(row["entropy"]), str(row["score"]))
        for place, row in lifts(found).items()
    ]
    before, after = by_distance(found, "until", most), by_distance(found, "since", most)

    def draw(axes: Any) -> None:  # noqa: ANN401 - matplotlib's
        from learners.plotting import style

        for index, kind in enumerate(("entropy", "score")):
            named = {"label": f"top {share:.0%} by {kind}", **style(index)}
            axes.plot(range(-most - 1, 0), before[kind][::-1], marker=".", **named)
            axes.plot(range(1, most + 2), after[kind], marker=".", **named | {"label": None})
        axes.axhline(1, color="0.6", linewidth=0.8)
        axes.axvspan(-0.9, 0.9, color="0.9")

    label = "tokens before the end of a call | after its result"
    files = _drawn(out, draw, label, "times as likely as any token")
    return [*files, _tabled(out, title, names, table)]


def words(
    run: Folder, top: int = 20, least: int = 10, last: int = 10, out: str = "figures/words"
) -> list[Path]:
    """Words ranked by entropy and by branching score.

    Args:
        run: folder of a run of learners.appo.
        top: how many of either ranking are shown.
        least: how often a word must be said to count.
        last: how many of the last iterations count.
        out: path of the figure without its suffix.
    """
    from learners.errors import UsageError
    from learners.figures.tokens import scored_rows, words_of

    found = words_of(scored_rows(run, last), least)
    if not found:
        raise UsageError(f"no word is said {least} times in the last {last} iterations of {run}")
    rankings = {
        kind: sorted(found, key=lambda word: (-getattr(word, kind), word.text))[:top]
        for kind in ("entropy", "score")
    }
    title = f"{run.name}: {len(found)} words said at least {least} times"
    names = ("by entropy", "nats", "times", "by score", "score", "times ")
    table = [
        (
            *(one.text, f"{one.entropy:.3f}", str(one.times)),
            *(other.text, f"{other.score:.3f}", str(other.times)),
        )
        for one, other in zip(*rankings.values(), strict=True)
    ]

    def draw(axes: Any) -> None:  # noqa: ANN401 - matplotlib's
        from learners.plotting import COLOURS

        for index, (kind, ranked) in enumerate(rankings.items()):
            most = max(getattr(ranked[0], kind), 1e-9)
            for place, word in enumerate(ranked):
                size = 6 + 8 * max(0.0, getattr(word, kind)) / most
                where = (index + 0.05, 1 - (place + 0.5) / top)
                # As text, never as a formula.
                shown = word.text.replace("$", r"\$")
                axes.annotate(shown, where, fontsize=size, color=COLOURS[index], va="center")
        axes.set_xlim(0, 2)
        axes.set_ylim(0, 1)
        axes.set_xticks([0.5, 1.5], ["by entropy", "by branching score"])
        axes.set_yticks([])

    return [*_drawn(out, draw, "", ""), _tabled(out, title, names, table)]


def rewards(
    runs: Annotated[list[Path], tyro.conf.Positional], out: str = "figures/rewards"
) -> list[Path]:
    """Reward curves, the band a deviation between runs of a method each way.

    Args:
        runs: folders of runs; those of one method are its seeds.
        out: path of the figure without its suffix.
    """
    from learners.compare import drawn_rewards, told_rewards
    from learners.console import Console
    from learners.errors import UsageError
    from learners.run_folder import read_metrics

    groups: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        config = run / "config.json"
        if not config.exists():
            raise UsageError(f"{run} is no folder of a run")
        lines = read_metrics(run)
        found = {
            "first_rewards": [line.get("reward/first") for line in lines],
            "rewards": [line.get("reward/mean") for line in lines],
            "tokens": [line.get("ledger/sampled_tokens", 0) for line in lines],
        }
        groups[json.loads(config.read_text())["method"].removeprefix("learners.")].append(found)
    kind = told_rewards(groups)
    for label, group in groups.items():
        last = [[r for r in run[kind] if r is not None][-10:] for run in group]
        told = ", ".join(f"{sum(x) / len(x):+.3f}" for x in last if x)
        Console().say(f"{label}: mean reward of each run's last ten iterations {told}")
    return _told(drawn_rewards(Path(out), groups, kind))


def pass_at_k(
    comparison: Folder, methods: tuple[str, ...] = ("appo", "arpo"), out: str = "figures/pass_at_k"
) -> list[Path]:
    """pass@k of some methods of a comparison.

    Args:
        comparison: folder of its report, as results/lab.
        methods: of the comparison.
        out: path of the figure without its suffix.
    """
    from learners.compare import drawn_pass_at_k, pass_at
    from learners.console import Console
    from learners.errors import UsageError

    path = comparison / "report.json"
    if not path.exists():
        raise UsageError(
            f"{path} is not there: learners.compare writes it, from summaries alone where all runs "
            "have theirs"
        )
    found = json.loads(path.read_text())["methods"]
    unknown = [label for label in methods if label not in found]
    if unknown or not methods:
        raise UsageError(f"{path} has no method {', '.join(unknown)}; it has {', '.join(found)}")
    chosen = {label: found[label] for label in methods}
    Console().say(pass_at({"methods": chosen}))
    return _told(drawn_pass_at_k(Path(out), chosen, "pass@k"))


def _drawn(out: str, draw: Any, x: str, y: str) -> list[Path]:  # noqa: ANN401 - draws on axes
    from learners.plotting import drawn

    return _told(drawn(Path(out), draw, x, y))


def _tabled(out: str, title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    """Say a table, and write it as Markdown beside the figure; the file."""
    from rich.table import Table

    from learners.compare import table
    from learners.console import Console

    shown = Table(*names, title=title)
    for row in rows:
        shown.add_row(*row)
    Console().say(shown)
    target = Path(f"{out}.md")
    cells = [[cell.replace("|", r"\|") for cell in row] for row in rows]
    target.write_text(f"{title}.\n\n{table(names, cells)}\n", "utf-8")
    return target


def _told(files: list[Path]) -> list[Path]:
    from learners.console import Console

    Console().say(f"files: {', '.join(map(str, files))}")
    return files


COMMANDS: dict[str, Callable[..., list[Path]]] = {
    "tokens": tokens,
    "words": words,
    "rewards": rewards,
    "pass-at-k": pass_at_k,
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line and draw."""
    from learners.console import report_errors

    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors(METHOD, arguments):
        tyro.extras.subcommand_cli_from_dict(
            COMMANDS, args=list(arguments), prog=f"python -m {METHOD}", description=__doc__
        )


if __name__ == "__main__":
    main()
