"""python -m learners.recount RUN: the ledger of a run, counted again from its rollout files.

A branch owns what lies behind its branch point; what lies before it was sampled, called and paid
for by its parent. Nothing here reads the ledger but to compare with it.
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
"""Entries of the ledger that rollout files decide, beside calls by tool."""


def recount(rows: Sequence[Mapping[str, Any]]) -> Counter[str]:
    """What the trajectories of an iteration cost, named as in the ledger.

    `total_tokens` beside it are all sampled tokens that the trajectories hold, shared ones in each:
    sampled + reused, less those that a tool's fault discarded.

    Args:
        rows: of rollout files.
    """
    found: Counter[str] = Counter()
    for row in rows:
        shared, mask = row["position"] or 0, row["mask"]
        found["sampled_tokens"] += sum(mask[shared:]) + row["discarded_tokens"]
        found["reused_tokens"] += sum(mask[:shared])
        found["total_tokens"] += sum(mask)
        weights = row["weights"] or []
        found["trained_tokens"] += sum(
            own and w != 0 for own, w in zip(mask, weights, strict=False)
        )
        for turn in row["turns"]:
            if turn["tool"] is None:
                continue
            if turn["end"] <= shared:
                found["inherited_calls"] += 1
                continue
            for name in ("tool_calls", "free_calls") if turn["free"] else ("tool_calls",):
                found[name] += 1
                found[f"{name}_{turn['tool']}"] += 1
    return found


def differences(line: Mapping[str, float], rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Ledger less recount, of every entry where they are not the same.

    Args:
        line: metrics of the iteration.
        rows: its trajectories.
    """
    counted = recount(rows)
    names = {*COUNTED, *(name for name in counted if name.startswith(("tool_calls", "free_calls")))}
    names |= {
        name.removeprefix("ledger/")
        for name in line
        if name.startswith(("ledger/tool_calls", "ledger/free_calls"))
    }
    gaps = {name: int(line.get(f"ledger/{name}", 0)) - counted[name] for name in sorted(names)}
    return {name: gap for name, gap in gaps.items() if gap}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print totals of a run by ledger and by recount; exit with 1 where they differ."""
    import tyro

    arguments = sys.argv[1:] if arguments is None else arguments
    folder = tyro.cli(
        tyro.conf.Positional[Path],
        args=arguments,
        prog="python -m learners.recount",
        description="Count a run's tokens and calls again from its rollout files.",
    )
    with report_errors("learners.recount", arguments):
        differing = _compare(folder)
    sys.exit(1 if differing else 0)


def _compare(folder: Path) -> int:
    """Print the comparison; how many iterations differ."""
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
        gaps = differences(lines[iteration], rows)
        differing += bool(gaps)
        if gaps:
            print(f"iteration {iteration}: ledger less recount {gaps}")  # noqa: T201
    for name in COUNTED:
        print(f"{name:<16} ledger {ledger[name]:>12,}  recount {total[name]:>12,}")  # noqa: T201
    print(  # noqa: T201
        f"sampled + reused = {total['sampled_tokens'] + total['reused_tokens']:,} tokens, in "
        f"trajectories {total['total_tokens']:,}; {differing} of {len(iterations)} iterations "
        "differ"
    )
    return differing


if __name__ == "__main__":
    main()
