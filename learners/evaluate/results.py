"""The results of an evaluation, and what every number depends on, as results.json holds them."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks import Endpoint, Judge
from learners.evaluate.config import Config
from learners.evaluate.grading import Grades
from learners.ledger import RunUsage, extract_judge_usage

RESULTS_FILE = "results.json"


@dataclass(frozen=True)
class BackendInfo:
    """The model that played, and how it sampled."""

    model: str
    protocol: str
    """tokens: a local model; chat or completions: an endpoint."""
    api_base: str | None
    temperature: float
    seed: int
    dtype: str | None
    left_out: list[str]
    """Parameters of a request that the endpoint refused."""


@dataclass(frozen=True)
class JudgeInfo:
    """The judge, and its usage in all gradings into a folder."""

    model: str
    fingerprint: str
    usage: dict[str, float]


@dataclass(frozen=True)
class EnvironmentResults:
    """Grades of one environment, and the settings they depend on."""

    split: str
    revision: str | None
    official_metric: str
    """Name of the function that scores."""
    training_metric: str
    tools: list[str]
    max_tool_calls: int
    max_response_tokens: int
    rows: dict[str, int]
    """Tasks of the split, and rows that became none, by reason."""
    grades: Grades
    judge: dict[str, float] | None
    """Usage of the judge in this grading; None without a judge."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as results.json holds them."""
        content = {k: v for k, v in vars(self).items() if k not in ("grades", "judge")}
        judge = {} if self.judge is None else {"judge": self.judge}
        return {**content, **self.grades.to_json(), **judge}


@dataclass(frozen=True)
class Results:
    """Results of an evaluation."""

    backend: BackendInfo
    judge: JudgeInfo | None
    versions: dict[str, str | None]
    """Versions of packages."""
    environments: Mapping[str, EnvironmentResults]
    """By id."""

    def to_json(self) -> dict[str, Any]:
        """Return the content of results.json."""
        judge = self.judge
        return {
            "player": asdict(self.backend),
            "judge": None
            if judge is None
            else {"model": judge.model, "fingerprint": judge.fingerprint, **judge.usage},
            "versions": self.versions,
            "environments": {k: v.to_json() for k, v in self.environments.items()},
        }


def describe_backend(config: Config, left_out: frozenset[str]) -> BackendInfo:
    """Describe the model that plays.

    Args:
        config: of the evaluation.
        left_out: parameters of a request that the endpoint refused.
    """
    remote = config.api_base is not None
    return BackendInfo(
        model=config.model,
        protocol=config.protocol if remote else "tokens",
        api_base=config.api_base,
        temperature=config.temperature,
        seed=config.seed,
        dtype=None if remote else config.dtype,
        left_out=sorted(left_out),
    )


def stored_backend(folder: Path) -> BackendInfo | None:
    """Read which model played the stored episodes; None if no results say so."""
    path = folder / RESULTS_FILE
    return BackendInfo(**json.loads(path.read_text())["player"]) if path.exists() else None


def describe_judge(config: Config, usage: RunUsage) -> JudgeInfo | None:
    """Describe the judge; None if there is none.

    Args:
        config: of the evaluation.
        usage: of the judge, of all processes that graded into the folder.
    """
    if config.judge_base is None or config.judge_model is None:
        return None
    fingerprint = Judge(Endpoint(config.judge_base, config.judge_model)).fingerprint
    totals = usage.totals()
    counts: dict[str, float] = {f"ledger/{name}": count for name, count in totals.items()}
    if usage.budget.prices:
        counts["ledger/cost"] = float(usage.budget.cost_of(totals))
    return JudgeInfo(config.judge_model, fingerprint, extract_judge_usage(counts))


def installed_versions() -> dict[str, str | None]:
    """Return the versions of the packages that numbers depend on."""
    return {name: _version(name) for name in ("appo-gym", "torch", "transformers")}


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return None
