"""The results of an evaluation as a table for a terminal."""

from __future__ import annotations

from rich.table import Table

from learners.evaluate.grading import Calibration, Grades
from learners.evaluate.results import Results

SCORERS = {
    "score_math": "equality",
    "score_em": "exact match",
    "score_gaia": "GAIA's scorer",
    "score_choice": "letter or judge",
    "score_exact": "exact or judge",
    "score_f1": "F1",
    "score": "exact match",
}
"""Names of scorers in tables, by the name of their function."""


def results_table(results: Results) -> Table:
    """Make a table with a row for each environment; `Grades` defines the numbers."""
    backend = results.backend
    table = Table(
        title=f"{backend.model}, protocol {backend.protocol}, temperature "
        f"{backend.temperature:g}; 95 % intervals"
    )
    table.add_column("environment")
    table.add_column("tasks", justify="right")
    table.add_column("official score")
    table.add_column("training score")
    table.add_column("exact match")
    for name in ("no answer", "errors", "calls", "tokens"):
        table.add_column(name, justify="right")
    for name, environment in results.environments.items():
        grades = environment.grades
        samples = f" x {grades.samples}" if grades.samples > 1 else ""
        table.add_row(
            name.removeprefix("appo/"),
            f"{grades.tasks}{samples}",
            official_cell(grades, environment.official_metric),
            f"{grades.training or '-'}\n{SCORERS.get(environment.training_metric, '')}",
            str(grades.em or "-"),
            str(grades.status.get("no answer", 0)),
            str(grades.status.get("error", 0)),
            _format_number(grades.tool_calls),
            _format_number(grades.tokens),
        )
    return table


def official_cell(grades: Grades, metric: str) -> str:
    """Write the official score with what belongs to it: the metric, pass@k, calibration."""
    name = SCORERS.get(metric, metric)
    if grades.not_judged:
        return f"not judged ({grades.not_judged} of {grades.episodes})\n{name}"
    lines = [str(grades.official or "-"), name]
    lines += [f"pass@{k} {estimate}" for k, estimate in grades.pass_at.items() if k > 1]
    if grades.calibration is not None:
        lines.append(_format_calibration(grades.calibration))
    return "\n".join(lines)


def _format_calibration(calibration: Calibration) -> str:
    official = "none" if calibration.official is None else f"{calibration.official:.3f}"
    return f"calibration error {calibration.value:.3f} (authors' script: {official})"


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"
