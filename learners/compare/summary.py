"""The summary of a trial: a few KB that hold all a comparison is made of.

Scores of tasks are in the order of tasks.json beside the summaries. Where they are whole numbers
below ten they are a string of digits, `-` for a task whose tools were unavailable.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from learners.compare.plan import Trial, evaluation_folder
from learners.errors import UsageError
from learners.ledger import SPENT, StopUnit, spent, spent_on_judging
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
"""Of an iteration, by wall clock."""


COSTS = {
    "reused": "ledger/reused_tokens",
    "trained": "ledger/trained_tokens",
    "inherited": "ledger/inherited_calls",
    "cost": "ledger/cost",
    "lost": "ledger/lost_tokens",
    "retries": "ledger/retries",
    "judge_calls": "ledger/judge_calls",
}
"""What is summed up beside the units of a budget; a run that never counted one had none."""


MEASURED = {
    "prefilled": "ledger/prefilled_tokens",
    "computed": "ledger/computed_tokens",
    "forked": "ledger/forked_states",
    "replayed": "ledger/replayed_states",
    **{f"{phase}_seconds": f"seconds/{phase}" for phase in PHASES},
}
"""Summed up where a run has them: not every sampler tells what it prefills."""


ACCOUNTED = (
    "ledger/",
    "seconds/",
    "memory/",
    "validation/",
    "tools/unavailable_after",
    "iteration",
)
"""Metrics whose mean over iterations is no part of a summary."""


ORIGIN = ("weights", "made")
"""What a summary tells of where its run came from, which only who ran it knows."""


Scores = list[float | None]


def write_summary(trial: Trial, tasks: Mapping[str, Any], jobs: int) -> None:
    """Write the summary of a trial that is done.

    Args:
        trial: its folders are read.
        tasks: what tasks.json holds.
        jobs: how many ran at a time; for who reads the seconds.
    """
    origin = {"weights": weights_digest(trial), "made": made(jobs)}
    trial.summary.parent.mkdir(parents=True, exist_ok=True)
    write_text(trial.summary, as_text(summarised(trial, tasks, origin)))


def summarised(trial: Trial, tasks: Mapping[str, Any], origin: Mapping[str, Any]) -> dict[str, Any]:
    """The summary of a trial that is done.

    Args:
        trial: its folders are read.
        tasks: what tasks.json holds.
        origin: what no folder tells; see ORIGIN.
    """
    lines = read_metrics(trial.folder) if trial.train else []
    found: dict[str, Any] = {
        "version": VERSION,
        "role": trial.role,
        "method": trial.method.module,
        "label": trial.method.label,
        "seed": trial.seed,
        "rate": trial.rate,
        "digest": trial.digest,
        "run": trial.changed,
        **{name: origin[name] for name in ORIGIN},
        "spent": totals(lines),
    }
    if trial.train:
        found |= {
            "rewards": [_rounded(line.get("reward/mean")) for line in lines],
            "reward_stds": [_rounded(line.get("reward/std")) for line in lines],
            "first_rewards": [_rounded(line.get("reward/first")) for line in lines],
            "tokens": [line.get(SPENT["tokens"], 0) for line in lines],
            "curve": _curve(trial.folder, lines, tasks["validation"]["ids"]),
            "metrics": _means(lines),
        }
    for split in ("test", "validation"):
        folder = evaluation_folder(trial.folder, split)
        if folder.is_dir():
            found[split] = _evaluated(folder, tasks[split]["ids"])
    asked = asked_of_judge(trial)
    return found | ({"judge": asked} if asked["calls"] or asked["faults"] else {})


def as_text(summary: Mapping[str, Any]) -> str:
    """A summary as its file holds it: a line a field."""
    body = ",\n".join(f" {json.dumps(k)}: {json.dumps(v)}" for k, v in summary.items())
    return "{\n" + body + "\n}\n"


def read_summary(path: Path) -> dict[str, Any] | None:
    """A summary; None where there is none yet.

    Raises:
        UsageError: it is damaged, or of another version.
    """
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise UsageError(f"{path} is damaged: {error}; delete it to run it again") from error
    if found["version"] != VERSION:
        raise UsageError(f"{path} has version {found['version']}; this reads {VERSION}")
    return found


def totals(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """What a run spent in training, by name."""
    units: tuple[StopUnit, ...] = tuple(SPENT)
    found: dict[str, float] = {"iterations": len(lines)}
    found |= {unit: round(spent(lines, unit), 2) for unit in units}
    for name, metric in COSTS.items():
        found[name] = round(sum(float(line.get(metric, 0)) for line in lines), 6)
    for name, metric in MEASURED.items():
        if any(metric in line for line in lines):
            found[name] = round(sum(float(line.get(metric, 0)) for line in lines), 2)
    if any(PEAK in line for line in lines):
        found["peak_memory"] = max(float(line.get(PEAK, 0)) for line in lines)
    return found


def encoded(scores: Sequence[float | None]) -> str | Scores:
    """Scores in little room; see the module."""
    if all(s is None or (s == int(s) and 0 <= s <= 9) for s in scores):
        return "".join("-" if s is None else str(int(s)) for s in scores)
    return [None if s is None else round(s, 4) for s in scores]


def decoded(scores: str | Scores) -> Scores:
    """What `encoded` was given."""
    if isinstance(scores, str):
        return [None if mark == "-" else float(mark) for mark in scores]
    return scores


def weights_digest(trial: Trial) -> str:
    """Names the weights a trial began with: two runs of one digest began alike."""
    name = (
        trial.changed.get("model")
        or trial.evaluations[0][trial.evaluations[0].index("--model") + 1]
    )
    inside = Path(name) / "model"
    folder = inside if inside.is_dir() else Path(newest_model(name))
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        return trial.model
    found = hashlib.sha256()
    for file in files:
        found.update(file.read_bytes())
    return found.hexdigest()[:12]


def made(jobs: int) -> dict[str, Any]:
    """By what and where a trial was run."""
    now = describe_machine()
    kept = {name: now[name] for name in ("commit", "processor")}
    return {**kept, "jobs": jobs, "torch": now["torch"]}


def _curve(
    folder: Path, lines: Sequence[Mapping[str, Any]], ids: Sequence[str]
) -> list[dict[str, Any]]:
    points = []
    for path in sorted((folder / "validation").glob("*.json")):
        done = int(path.stem)
        if done > len(lines):  # of an iteration that a kill discarded
            continue
        rows = {row["task"]: row["score"] for row in json.loads(path.read_text())["tasks"]}
        so_far: dict[str, float] = {unit: round(spent(lines[:done], unit), 2) for unit in SPENT}
        scores = encoded([rows.get(task) for task in ids])
        points.append({"iterations": done, **so_far, "scores": scores})
    return points


def _evaluated(folder: Path, ids: Sequence[str]) -> dict[str, Any]:
    """Per task the sum of its scores and how many of its samples are right, and what it took."""
    rows = []
    for path in folder.glob("*.graded.jsonl"):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    played = [row for row in rows if row["status"] != "error"]
    by_task: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in played:
        by_task[row["task"]].append(row)
    samples = max(map(len, by_task.values()), default=0)

    def per_task(worth: Callable[[dict[str, Any]], float]) -> str | Scores:
        whole = [by_task[task] if len(by_task[task]) == samples else None for task in ids]
        return encoded([None if group is None else sum(map(worth, group)) for group in whole])

    return {
        "samples": samples,
        "scores": per_task(lambda row: row["official"] or 0.0),
        "right": per_task(lambda row: float(row["status"] == "right")),
        "not_judged": sum(row["status"] == "not judged" for row in rows),
        "stop": dict(Counter(row["stop"] for row in played)),
        "tool_calls": _rounded(fmean(len(row["calls"]) for row in played) if played else None),
        "tokens": _rounded(fmean(row["tokens"] for row in played) if played else None),
    }


def asked_of_judge(trial: Trial) -> Counter[str]:
    """What the validations and the evaluations of a trial asked of the judge, and paid for it."""
    told = [spent_on_judging(evaluation_costs(trial.folder))] if trial.train else []
    for split in ("test", "validation"):
        path = evaluation_folder(trial.folder, split) / "results.json"
        judge = json.loads(path.read_text())["judge"] if path.exists() else None
        told += [] if judge is None else [judge]
    found: Counter[str] = Counter()
    for one in told:
        found.update({name: one.get(name, 0) for name in ("calls", "cached", "faults", "cost")})
    return found


def _means(lines: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = sorted({name for line in lines for name in line if not name.startswith(ACCOUNTED)})
    return {name: _rounded(fmean(line[name] for line in lines if name in line)) for name in names}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
