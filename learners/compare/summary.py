"""The summary of a trial: a JSON file of a few KB with everything that a report needs.

Scores of tasks are in the order of tasks.json, which is next to the summaries. Scores that are all
whole numbers below ten are stored as a string of digits, with `-` for a task whose tools were
unavailable.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, TypedDict

from learners.compare.plan import Trial, evaluation_folder
from learners.errors import UsageError
from learners.ledger import UNIT_METRICS, StopUnit, amount_used, extract_judge_usage
from learners.metrics import PEAK
from learners.run_folder import (
    describe_machine,
    evaluation_costs,
    newest_model,
    read_metrics,
    write_text,
)

VERSION = 1

PHASES = ("sample", "tools", "score", "update")
"""Phases of an iteration, which split its wall clock."""

COSTS = {
    "reused": "ledger/reused_tokens",
    "trained": "ledger/trained_tokens",
    "inherited": "ledger/inherited_calls",
    "cost": "ledger/cost",
    "lost": "ledger/lost_tokens",
    "retries": "ledger/retries",
    "judge_calls": "ledger/judge_calls",
}
"""Totals in addition to the units of a budget; 0 if a run never counted one."""

OPTIONAL_COSTS = {
    "prefilled": "ledger/prefilled_tokens",
    "computed": "ledger/computed_tokens",
    "forked": "ledger/forked_states",
    "replayed": "ledger/replayed_states",
    **{f"{phase}_seconds": f"seconds/{phase}" for phase in PHASES},
}
"""Totals that are left out if a run has no such metric: not every sampler counts prefills."""

NOT_AVERAGED = (
    "ledger/",
    "seconds/",
    "memory/",
    "validation/",
    "tools/unavailable_after",
    "iteration",
)
"""Metrics, or their prefixes, whose mean over iterations is not part of a summary."""

Summary = Mapping[str, Any]
"""Content of a summary file; `summarise` builds it."""

TaskScores = list[float | None]
"""Scores of tasks; None for a task whose tools were unavailable."""


class Provenance(TypedDict):
    """The code, the machine and the load that a trial ran with."""

    commit: str | None
    processor: str
    jobs: int
    """Trials at the same time, which decides what `seconds` mean."""
    torch: str


class SplitTasks(TypedDict):
    """Evaluated tasks of a split, in the order of all scores."""

    ids: list[str]
    levels: list[str]


Tasks = Mapping[str, SplitTasks]
"""Evaluated tasks by split, as tasks.json holds them."""


def write_summary(trial: Trial, tasks: Tasks, jobs: int) -> None:
    """Write the summary of a trial that is done.

    Args:
        trial: its folders are read.
        tasks: of the comparison.
        jobs: trials that ran at the same time.
    """
    fields = summarise(trial, tasks, jobs)
    lines = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in fields.items())
    trial.summary.parent.mkdir(parents=True, exist_ok=True)
    write_text(trial.summary, "{\n" + lines + "\n}\n")


def read_summary(path: Path) -> dict[str, Any] | None:
    """Read a summary; None if there is none yet.

    Raises:
        UsageError: it is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        summary: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}; delete it to run it again") from error
    if summary["version"] != VERSION:
        raise UsageError(f"{path} has version {summary['version']}; this reads {VERSION}")
    return summary


def summarise(trial: Trial, tasks: Tasks, jobs: int) -> dict[str, Any]:
    """Build the summary of a trial that is done; see `write_summary`."""
    lines = read_metrics(trial.folder) if trial.train else []
    summary: dict[str, Any] = {
        "version": VERSION,
        "role": trial.role,
        "method": trial.method.module,
        "label": trial.method.label,
        "seed": trial.seed,
        "rate": trial.rate,
        "digest": trial.digest,
        "run": trial.changed,
        "weights": weights_digest(trial),
        "made": provenance(jobs),
        "spent": sum_costs(lines),
    }
    if trial.train:
        summary |= {
            "rewards": [_round(line.get("reward/mean")) for line in lines],
            "reward_stds": [_round(line.get("reward/std")) for line in lines],
            "first_rewards": [_round(line.get("reward/first")) for line in lines],
            "tokens": [line.get(UNIT_METRICS["tokens"], 0) for line in lines],
            "curve": _learning_curve(trial.folder, lines, tasks["validation"]["ids"]),
            "metrics": _average_metrics(lines),
        }
    for split in ("test", "validation"):
        folder = evaluation_folder(trial.folder, split)
        if folder.is_dir():
            summary[split] = _summarise_evaluation(folder, tasks[split]["ids"])
    usage = judge_usage(trial)
    return summary | ({"judge": usage} if usage["calls"] or usage["faults"] else {})


def sum_costs(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Add up what a run's iterations cost in training, by name."""
    units: tuple[StopUnit, ...] = tuple(UNIT_METRICS)
    totals: dict[str, float] = {"iterations": len(lines)}
    totals |= {unit: round(amount_used(lines, unit), 2) for unit in units}
    for name, metric in COSTS.items():
        totals[name] = round(sum(float(line.get(metric, 0)) for line in lines), 6)
    for name, metric in OPTIONAL_COSTS.items():
        if any(metric in line for line in lines):
            totals[name] = round(sum(float(line.get(metric, 0)) for line in lines), 2)
    if any(PEAK in line for line in lines):
        totals["peak_memory"] = max(float(line.get(PEAK, 0)) for line in lines)
    return totals


def encode_scores(scores: Sequence[float | None]) -> str | TaskScores:
    """Shorten scores for a file; see the module's docstring."""
    if all(s is None or (s == int(s) and 0 <= s <= 9) for s in scores):
        return "".join("-" if s is None else str(int(s)) for s in scores)
    return [None if s is None else round(s, 4) for s in scores]


def decode_scores(scores: str | TaskScores) -> TaskScores:
    """Undo `encode_scores`."""
    if isinstance(scores, str):
        return [None if mark == "-" else float(mark) for mark in scores]
    return scores


def weights_digest(trial: Trial) -> str:
    """Return a digest of the weights that a trial started from."""
    name = (
        trial.changed.get("model")
        or trial.evaluations[0][trial.evaluations[0].index("--model") + 1]
    )
    inside = Path(name) / "model"
    folder = inside if inside.is_dir() else Path(newest_model(name))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return trial.model
    digest = hashlib.sha256()
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def provenance(jobs: int) -> Provenance:
    """Return what runs on this machine are made with."""
    now = describe_machine()
    return {
        "commit": now["commit"],
        "processor": now["processor"],
        "jobs": jobs,
        "torch": now["torch"],
    }


def judge_usage(trial: Trial) -> Counter[str]:
    """Count calls, faults and costs of the judge in a trial's validations and evaluations."""
    usages = [extract_judge_usage(evaluation_costs(trial.folder))] if trial.train else []
    for split in ("test", "validation"):
        path = evaluation_folder(trial.folder, split) / "results.json"
        judge = json.loads(path.read_text())["judge"] if path.exists() else None
        usages += [] if judge is None else [judge]
    total: Counter[str] = Counter()
    for usage in usages:
        total.update({name: usage.get(name, 0) for name in ("calls", "cached", "faults", "cost")})
    return total


def _learning_curve(
    folder: Path, lines: Sequence[Mapping[str, Any]], ids: Sequence[str]
) -> list[dict[str, Any]]:
    """Return a point for each evaluation during training: what was spent, and all scores."""
    points = []
    for path in sorted((folder / "validation").glob("*.json")):
        done = int(path.stem)
        if done > len(lines):  # of an iteration that a kill discarded
            continue
        rows = {row["task"]: row["score"] for row in json.loads(path.read_text())["tasks"]}
        totals: dict[str, float] = {
            unit: round(amount_used(lines[:done], unit), 2) for unit in UNIT_METRICS
        }
        scores = encode_scores([rows.get(task) for task in ids])
        points.append({"iterations": done, **totals, "scores": scores})
    return points


def _summarise_evaluation(folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Sum the scores and count the right samples of each task; average what episodes took."""
    rows = []
    for path in folder.glob("*.graded.jsonl"):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    played = [row for row in rows if row["status"] != "error"]
    by_task: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in played:
        by_task[row["task"]].append(row)
    samples = max(map(len, by_task.values()), default=0)

    def per_task(worth: Callable[[dict[str, Any]], float]) -> str | TaskScores:
        # A task with fewer samples than the others has no comparable sum.
        groups = [by_task[task] if len(by_task[task]) == samples else None for task in ids]
        return encode_scores(
            [None if group is None else sum(map(worth, group)) for group in groups]
        )

    return {
        "samples": samples,
        "scores": per_task(lambda row: row["official"] or 0.0),
        "right": per_task(lambda row: float(row["status"] == "right")),
        "not_judged": sum(row["status"] == "not judged" for row in rows),
        "stop": dict(Counter(row["stop"] for row in played)),
        "tool_calls": _round(fmean(len(row["calls"]) for row in played) if played else None),
        "tokens": _round(fmean(row["tokens"] for row in played) if played else None),
    }


def _average_metrics(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = sorted({name for line in lines for name in line if not name.startswith(NOT_AVERAGED)})
    return {name: _round(fmean(line[name] for line in lines if name in line)) for name in names}


def _round(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
