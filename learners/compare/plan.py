"""What a comparison has to run: every trial with its commands, its folders and its digest.

A trial is named by a digest of what decides its numbers, so that its summary is found again and
nothing is run twice. Fields at their default are left out of it: a field that is new changes none.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from learners.compare.config import Config, Method, as_arguments, budget, methods
from learners.config import RunConfig
from learners.console import parse_options
from learners.ledger import JUDGE

Role = Literal["start", "tuning", "final"]


TUNING_SEED = 1000
"""The first seed of tuning: no seed of a comparison."""


MOST_ITERATIONS = 100_000


SHARED = ("tools", "search", "corpus", "cache", "cache_mode", "sandbox", "level", "data_dir")
"""What evaluations take over from the runs, beside the limits of an episode."""


NOT_IN_DIGEST = {"out", "log", "checkpoint_every", "data_dir", "run_calls", "run_cost"} | {
    "judge_base",
    "judge_key_variable",
}
"""Fields of a run that do not alter its numbers, or name a place on a machine."""


class Trial(NamedTuple):
    """A run of a method with its evaluation; or the evaluation of what all begin with."""

    role: Role
    method: Method
    seed: int
    rate: float | None
    """A rate that was tried; None: the method's own."""
    model: str
    """What it begins with."""
    digest: str
    folder: Path
    """Of the run; what evaluates it lies beside."""
    summary: Path
    train: tuple[str, ...]
    """The command; empty for `start`."""
    evaluations: tuple[tuple[str, ...], ...]
    changed: dict[str, Any]
    """Fields of the run's config that are not at their default."""

    @property
    def title(self) -> str:
        """For people."""
        tried = f", learning rate {self.rate:g}" if self.rate is not None else ""
        return f"{self.method.label}, seed {self.seed}{tried}"


START = Method("start", "", ())


def start_trials(config: Config) -> list[Trial]:
    """Evaluations of the model that all runs begin with, a seed each."""
    first = methods(config)[0]
    return [_start_trial(config, first, seed) for seed in range(config.seeds)]


def tuning_trials(config: Config) -> list[Trial]:
    """Runs that choose learning rates; none where there is nothing to choose."""
    return [
        _trial(config, "tuning", method, TUNING_SEED + seed, rate)
        for seed in range(config.tuning_seeds if config.rates else 0)
        for method in methods(config)
        for rate in config.rates
    ]


def final_trials(config: Config, rates: dict[str, float]) -> list[Trial]:
    """The runs that are compared, seed by seed, so that a part of them compares all methods.

    Args:
        config: of the comparison.
        rates: chosen, by label.
    """
    return [
        _trial(config, "final", method, seed, rates.get(method.label))
        for seed in range(config.seeds)
        for method in methods(config)
    ]


def run_arguments(config: Config, method: Method) -> list[str]:
    """What every run of a method is given, but for seed, rate and folder."""
    limit = budget(config)
    if limit.unit == "iterations":
        ends = ["--iterations", f"{limit.amount:.0f}"]
    else:
        ends = ["--iterations", str(MOST_ITERATIONS), "--stop-at", limit.unit]
        ends.append(repr(limit.amount))
    found = ["--scale", "laptop", *as_arguments(config.settings), *method.arguments, *ends]
    found += ["--env", config.env, "--model", config.model, "--threads", "1", "--eval-tasks", "0"]
    found += ["--eval-every", str(config.eval_every)]
    found += ["--validation-tasks", str(config.validation_tasks)]
    found += ["--eval-temperature", repr(config.temperature)]
    for name in ("level", "data_dir"):
        value = getattr(config, name)
        found += [] if value is None else [f"--{name.replace('_', '-')}", value]
    return found


@lru_cache(maxsize=256)
def run_config(method: Method, arguments: tuple[str, ...]) -> RunConfig:
    """The config that a run would have; says what is wrong and exits where there is none."""
    module = importlib.import_module(method.module)
    scales = [b for a, b in pairwise(arguments) if a == "--scale"]
    config: RunConfig = parse_options(
        method.module, module.Config.at(scales[-1]), arguments, prog=f"--methods {method.label}: "
    )
    config.validate()
    return config


def changed_fields(config: RunConfig) -> dict[str, Any]:
    """The fields that are not at their default."""
    options = json.loads(json.dumps(config.options()))
    defaults = json.loads(json.dumps(type(config)().options()))
    return {name: value for name, value in options.items() if value != defaults[name]}


def _trial(config: Config, role: Role, method: Method, seed: int, rate: float | None) -> Trial:
    shared = run_arguments(config, method)
    parsed = run_config(method, tuple(shared)).override(seed=seed)
    arguments = [*shared, "--seed", str(seed)]
    if rate is not None:
        parsed = parsed.override(learning_rate=rate)
        arguments += ["--learning-rate", repr(rate)]
    changed = {k: v for k, v in changed_fields(parsed).items() if k not in NOT_IN_DIGEST}
    judged = _judged(config) if role == "final" else {}
    digest = _digest({"method": method.module, "start": config.start, **judged, "run": changed})
    folder, summary = _places(config, method, seed, digest)
    command = _python(method.module, *arguments, "--out", str(folder))
    evaluations: tuple[tuple[str, ...], ...] = ()
    if role == "final":
        evaluations = (_evaluation(config, parsed, seed, str(folder), "test", folder),)
    return Trial(
        role,
        method,
        seed,
        rate,
        config.model,
        digest,
        folder,
        summary,
        command,
        evaluations,
        changed,
    )


def _start_trial(config: Config, method: Method, seed: int) -> Trial:
    parsed = run_config(method, tuple(run_arguments(config, method)))
    options = parsed.options()
    shared = {name: options[name] for name in (*SHARED, *LIMITS) if name != "data_dir"}
    parts = {"model": config.model, "start": config.start, "env": config.env, "seed": seed}
    parts |= _judged(config) | {"validation_tasks": config.validation_tasks, **shared}
    parts |= {} if parsed.judge.judge_model is None else {"judge_model": parsed.judge.judge_model}
    parts |= {"dtype": "bfloat16"} if parsed.optimisation.autocast else {}
    digest = _digest(parts)
    folder, summary = _places(config, START, seed, digest)
    evaluations = tuple(
        _evaluation(config, parsed, seed, config.model, split, folder)
        for split in ("test", "validation")
    )
    return Trial(
        "start", START, seed, None, config.model, digest, folder, summary, (), evaluations, {}
    )


LIMITS = ("max_tool_calls", "max_response_tokens")


def _judge(run: RunConfig) -> list[str]:
    """What names the judge of a run to an evaluation; nothing where it has none."""
    if run.judge.judge_base is None or run.judge.judge_model is None:
        return []
    given = ["--judge-base", run.judge.judge_base, "--judge-model", run.judge.judge_model]
    given += ["--judge-key-variable", run.judge.judge_key_variable]
    price = dict(run.limits.prices).get(JUDGE)
    return given + ([] if price is None else ["--judge-price", repr(price)])


def _evaluation(
    config: Config, run: RunConfig, seed: int, model: str, split: str, folder: Path
) -> tuple[str, ...]:
    tasks = config.eval_tasks if split == "test" else config.validation_tasks
    samples = config.samples if split == "test" else 1
    given = ["--model", model, "--env", config.env, "--split", split, "--tasks", str(tasks)]
    given += ["--samples", str(samples), "--temperature", repr(config.temperature)]
    given += ["--seed", str(seed), "--threads", "1", "--out", str(evaluation_folder(folder, split))]
    given += ["--dtype", "bfloat16"] if run.optimisation.autocast else []
    options = run.options()
    for name in (*SHARED, *LIMITS):
        value = options[name]
        words = value if isinstance(value, tuple) else (value,)
        given += [] if value is None else [f"--{name.replace('_', '-')}", *map(str, words)]
    return _python("learners.evaluate", *given, *_judge(run))


def evaluation_folder(folder: Path, split: str) -> Path:
    """Where a trial's evaluation on a split lies."""
    return folder.with_name(f"{folder.name}-{split}")


def _judged(config: Config) -> dict[str, Any]:
    names = ("eval_tasks", "samples", "temperature")
    return {name: getattr(config, name) for name in names}


def _digest(parts: dict[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _places(config: Config, method: Method, seed: int, digest: str) -> tuple[Path, Path]:
    name = f"{method.slug}-{seed}-{digest}"
    return runs_folder(config) / name, Path(config.results) / config.name / f"{name}.json"


def runs_folder(config: Config) -> Path:
    """Where the runs of a comparison lie."""
    return Path(config.out or f"runs/compare/{config.name}")


def _python(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
