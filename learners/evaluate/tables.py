"""The results of an evaluation: what belongs beside every number, and a table for a terminal."""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from benchmarks import Endpoint, Judge
from learners.evaluate.config import Config
from learners.ledger import RunUsage, judge_usage

SCORERS = {
    "score_math": "equality",
    "score_em": "exact match",
    "score_gaia": "GAIA's scorer",
    "score_choice": "letter or judge",
    "score_exact": "exact or judge",
    "score_f1": "F1",
    "score": "exact match",
}
"""What a scorer is called in tables, by its function's name."""


def about(
    config: Config, left_out: frozenset[str] | None, folder: Path, usage: RunUsage
) -> dict[str, Any]:
    """Who played and who judged, how often and at what cost, and what it was done with.

    Args:
        config: of the evaluation.
        left_out: parameters that the endpoint did not take; None where stored episodes were graded
            again: then what was said before stands.
        folder: where results.json may lie.
        usage: of the judge, over all processes that graded into the folder.
    """
    path = folder / "results.json"
    if left_out is None and path.exists():
        of_player = json.loads(path.read_text())["player"]
    else:
        remote = config.api_base is not None
        of_player = {
            "model": config.model,
            "protocol": config.protocol if remote else "tokens",
            "api_base": config.api_base,
            "temperature": config.temperature,
            "seed": config.seed,
            "dtype": None if remote else config.dtype,
            "left_out": sorted(left_out or ()),
        }
    judge: dict[str, Any] | None = None
    if config.judge_base is not None and config.judge_model is not None:
        fingerprint = Judge(Endpoint(config.judge_base, config.judge_model)).fingerprint
        totals = usage.totals()
        counts: dict[str, float] = {f"ledger/{name}": count for name, count in totals.items()}
        if usage.budget.prices:
            counts["ledger/cost"] = float(usage.budget.cost_of(totals))
        judge = {"model": config.judge_model, "fingerprint": fingerprint}
        judge |= judge_usage(counts)
    versions = {name: _version(name) for name in ("appo-gym", "torch", "transformers")}
    return {"player": of_player, "judge": judge, "versions": versions}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return None


def results_table(results: dict[str, Any]) -> Table:
    """One line per environment; see `learners.evaluate.grading.summary` for the numbers."""
    player = results["player"]
    table = Table(
        title=f"{player['model']}, protocol {player['protocol']}, temperature "
        f"{player['temperature']:g}; 95 % intervals"
    )
    table.add_column("environment")
    table.add_column("tasks", justify="right")
    table.add_column("official score")
    table.add_column("training score")
    table.add_column("exact match")
    for name in ("no answer", "errors", "calls", "tokens"):
        table.add_column(name, justify="right")
    for name, found in results["environments"].items():
        counts = found["status"]
        samples = f" x {found['samples']}" if found["samples"] > 1 else ""
        table.add_row(
            name.removeprefix("appo/"),
            f"{found['tasks']}{samples}",
            _official(found),
            f"{_interval(found['training'])}\n{SCORERS.get(found['training_metric'], '')}",
            _interval(found["em"]),
            str(counts.get("no answer", 0)),
            str(counts.get("error", 0)),
            _number(found["tool_calls"]),
            _number(found["tokens"]),
        )
    return table


def _official(found: dict[str, Any]) -> str:
    metric = SCORERS.get(found["official_metric"], found["official_metric"])
    if found["not_judged"]:
        return f"not judged ({found['not_judged']} of {found['episodes']})\n{metric}"
    lines = [f"{_interval(found['official'])}", metric]
    lines += [f"pass@{k} {_interval(value)}" for k, value in found["pass_at"].items() if int(k) > 1]
    if found.get("calibration") is not None:
        lines.append(_calibration(found["calibration"]))
    return "\n".join(lines)


def _calibration(found: dict[str, Any]) -> str:
    official = "none" if found["official"] is None else f"{found['official']:.3f}"
    return f"calibration error {found['value']:.3f} (authors' script: {official})"


def _interval(value: dict[str, Any] | None) -> str:
    if value is None:
        return "-"
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
