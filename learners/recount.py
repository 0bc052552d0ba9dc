"""python -m learners.recount RUN: count a run's ledger again from its rollout files.

A branch owns the tokens and calls behind its branch point; its parent sampled, made and paid for
those before it. The ledger itself is read only for the comparison.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from learners.console import report_errors
from learners.rollouts import list_iterations, read_rows
from learners.run_folder import read_metrics

COUNTED = (
    "sampled_tokens",
    "reused_tokens",
    "trained_tokens",
    "tool_calls",
    "inherited_calls",
    "free_calls",
)
"""Entries of the ledger that rollout files determine, besides calls by tool."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a run's totals by ledger and by recount; exit with 1 if they differ."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    folder = tyro.cli(
        tyro.conf.Positional[Path],
        args=arguments,
        prog="python -m learners.recount",
        description="Count a run's tokens and calls again from its rollout files.",
    )
    with report_errors("learners.recount", arguments):
        differing = print_comparison(folder)
    sys.exit(1 if differing else 0)


def print_comparison(folder: Path) -> int:
    """Print ledger and recount of a run; return the number of iterations that differ."""
    iterations = list_iterations(folder)
    lines = {int(line["iteration"]): line for line in read_metrics(folder)}
    total: Counter[str] = Counter()
    ledger: Counter[str] = Counter()
    differing = 0
    for iteration in iterations:
        if iteration not in lines:
            print(f"iteration {iteration}: not in metrics.jsonl yet")  # noqa: T201
            continue
        rows = read_rows(folder, iteration)
        total += recount(rows)
        ledger.update({name: int(lines[iteration].get(f"ledger/{name}", 0)) for name in COUNTED})
        gaps = find_differences(lines[iteration], rows)
        differing += bool(gaps)
        if gaps:
            print(f"iteration {iteration}: ledger minus recount {gaps}")  # noqa: T201
    for name in COUNTED:
        print(f"{name:<16} ledger {ledger[name]:>12,}  recount {total[name]:>12,}")  # noqa: T201
    print(  # noqa: T201
        f"sampled + reused = {total['sampled_tokens'] + total['reused_tokens']:,} tokens, in "
        f"trajectories {total['total_tokens']:,}; {differing} of {len(iterations)} iterations "
        "differ"
    )
    return differing


def find_differences(
    line: Mapping[str, float], rows: Sequence[Mapping[str, Any]]
) -> dict[str, int]:
    """Return ledger minus recount of every entry in which they differ.

    Args:
        line: metrics of the iteration.
        rows: its trajectories, from its rollout file.
    """
    counts = recount(rows)
    names = {*COUNTED, *(name for name in counts if name.startswith(("tool_calls", "free_calls")))}
    names |= {
        name.removeprefix("ledger/")
        for name in line
        if name.startswith(("ledger/tool_calls", "ledger/free_calls"))
    }
    gaps = {name: int(line.get(f"ledger/{name}", 0)) - counts[name] for name in sorted(names)}
    return {name: gap for name, gap in gaps.items() if gap}


def recount(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """Count what the trajectories of an iteration cost, by the ledger's names.

    In addition, `total_tokens` counts the sampled tokens of every trajectory, shared ones in each.
    It is sampled + reused, less the tokens that a tool's fault discarded.

    Args:
        rows: of rollout files.
    """
    counts: Counter[str] = Counter()
    for row in rows:
        shared, mask = row["position"] or 0, row["mask"]
        counts["sampled_tokens"] += sum(mask[shared:]) + row["discarded_tokens"]
        counts["reused_tokens"] += sum(mask[:shared])
        counts["total_tokens"] += sum(mask)
        weights = row["weights"] or []
        counts["trained_tokens"] += sum(
            sampled and weight != 0 for sampled, weight in zip(mask, weights, strict=False)
        )
        for turn in row["turns"]:
            if turn["tool"] is None:
                continue
            if turn["end"] <= shared:
                counts["inherited_calls"] += 1
                continue
            for name in ("tool_calls", "free_calls") if turn["free"] else ("tool_calls",):
                counts[name] += 1
                counts[f"{name}_{turn['tool']}"] += 1
    return counts


if __name__ == "__main__":
    main()
