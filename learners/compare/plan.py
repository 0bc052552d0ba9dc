"""The trials of a comparison, each with its commands, its paths and its digest.

The digest is of everything that decides a trial's numbers, so that its summary can be found again
and nothing is run twice. It leaves out options at their default: a new option changes no digest.
"""

from __future__ import annotations

import hashlib
import json
import sys
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

from learners.compare.config import (
    Config,
    Method,
    load_method,
    parse_budget,
    parse_methods,
    to_arguments,
)
from learners.config import RunConfig
from learners.console import parse_options
from learners.ledger import JUDGE

Role = Literal["start", "tuning", "final"]

TUNING_SEED = 1000
"""First seed of tuning; larger than any seed of a comparison."""

MAX_ITERATIONS = 100_000
"""Iterations of a run whose budget is counted in another unit: never reached."""

SHARED = ("tools", "search", "corpus", "cache", "cache_mode", "sandbox", "level", "data_dir")
"""Options that evaluations take over from the runs, in addition to LIMITS."""

LIMITS = ("max_tool_calls", "max_response_tokens")
"""Limits of an episode."""

NOT_IN_DIGEST = {"out", "log", "checkpoint_every", "data_dir", "run_calls", "run_cost"} | {
    "judge_base",
    "judge_key_variable",
}
"""Options of a run that do not change its numbers, or that name something on one machine."""


class Trial(NamedTuple):
    """A run with its evaluation, or an evaluation of the model that all runs start from."""

    role: Role
    method: Method
    seed: int
    rate: float | None
    """Learning rate that is tried or was chosen; None: the method's default."""
    model: str
    """Model that the run starts from."""
    digest: str
    folder: Path
    """Folder of the run; its evaluations are next to it."""
    summary: Path
    """File of the summary."""
    train: tuple[str, ...]
    """Command that trains; empty for the role `start`."""
    evaluations: tuple[tuple[str, ...], ...]
    """Commands that evaluate."""
    changed: dict[str, Any]
    """Options of the run that are not at their default."""

    @property
    def title(self) -> str:
        """Text that names the trial on a terminal."""
        rate = f", learning rate {self.rate:g}" if self.rate is not None else ""
        return f"{self.method.label}, seed {self.seed}{rate}"


START = Method("start", "", ())
"""Stands in for a method in trials that evaluate the model all runs start from."""


def start_trials(config: Config) -> list[Trial]:
    """Plan the evaluations of the model that all runs start from, one per seed."""
    first = parse_methods(config)[0]
    return [_start_trial(config, first, seed) for seed in range(config.seeds)]


def tuning_trials(config: Config) -> list[Trial]:
    """Plan the runs that choose learning rates; none if there are no rates to choose from."""
    return [
        _run_trial(config, "tuning", method, TUNING_SEED + seed, rate)
        for seed in range(config.tuning_seeds if config.rates else 0)
        for method in parse_methods(config)
        for rate in config.rates
    ]


def final_trials(config: Config, rates: dict[str, float]) -> list[Trial]:
    """Plan the runs that are compared, seed by seed: a first part of them has all methods.

    Args:
        config: of the comparison.
        rates: chosen learning rates, by label.
    """
    return [
        _run_trial(config, "final", method, seed, rates.get(method.label))
        for seed in range(config.seeds)
        for method in parse_methods(config)
    ]


def run_arguments(config: Config, method: Method) -> list[str]:
    """Return the arguments of every run of a method, without seed, rate and folder."""
    budget = parse_budget(config)
    if budget.unit == "iterations":
        end = ["--iterations", f"{budget.amount:.0f}"]
    else:
        end = ["--iterations", str(MAX_ITERATIONS), "--stop-at", budget.unit, repr(budget.amount)]
    arguments = ["--scale", "laptop", *to_arguments(config.settings), *method.arguments, *end]
    arguments += ["--env", config.env, "--model", config.model]
    arguments += ["--threads", "1", "--eval-tasks", "0"]
    arguments += ["--eval-every", str(config.eval_every)]
    arguments += ["--validation-tasks", str(config.validation_tasks)]
    arguments += ["--eval-temperature", repr(config.temperature)]
    for name in ("level", "data_dir"):
        value = getattr(config, name)
        arguments += [] if value is None else [f"--{name.replace('_', '-')}", value]
    return arguments


@lru_cache(maxsize=256)
def run_config(method: Method, arguments: tuple[str, ...]) -> RunConfig:
    """Parse the arguments of a run; prints what is wrong with them and exits if they are wrong."""
    module = load_method(method)
    scales = [b for a, b in pairwise(arguments) if a == "--scale"]
    config: RunConfig = parse_options(
        method.module, module.Config.at(scales[-1]), arguments, prog=f"--methods {method.label}: "
    )
    config.validate()
    return config


def changed_options(config: RunConfig) -> dict[str, Any]:
    """Return the options that are not at their default."""
    options = json.loads(json.dumps(config.options()))
    defaults = json.loads(json.dumps(type(config)().options()))
    return {name: value for name, value in options.items() if value != defaults[name]}


def evaluation_folder(folder: Path, split: str) -> Path:
    """Return the folder of a trial's evaluation on a split."""
    return folder.with_name(f"{folder.name}-{split}")


def runs_folder(config: Config) -> Path:
    """Return the folder of a comparison's runs."""
    return Path(config.out or f"runs/compare/{config.name}")


def _run_trial(config: Config, role: Role, method: Method, seed: int, rate: float | None) -> Trial:
    arguments = run_arguments(config, method)
    run = run_config(method, tuple(arguments)).override(seed=seed)
    arguments += ["--seed", str(seed)]
    if rate is not None:
        run = run.override(learning_rate=rate)
        arguments += ["--learning-rate", repr(rate)]
    changed = {k: v for k, v in changed_options(run).items() if k not in NOT_IN_DIGEST}
    tested = _test_options(config) if role == "final" else {}
    digest = _digest({"method": method.module, "start": config.start, **tested, "run": changed})
    folder, summary = _paths(config, method, seed, digest)
    evaluations: tuple[tuple[str, ...], ...] = ()
    if role == "final":
        evaluations = (_evaluation_command(config, run, seed, str(folder), "test", folder),)
    return Trial(
        role,
        method,
        seed,
        rate,
        config.model,
        digest,
        folder,
        summary,
        _python_command(method.module, *arguments, "--out", str(folder)),
        evaluations,
        changed,
    )


def _start_trial(config: Config, method: Method, seed: int) -> Trial:
    run = run_config(method, tuple(run_arguments(config, method)))
    options = run.options()
    shared = {name: options[name] for name in (*SHARED, *LIMITS) if name != "data_dir"}
    parts = {"model": config.model, "start": config.start, "env": config.env, "seed": seed}
    parts |= _test_options(config) | {"validation_tasks": config.validation_tasks, **shared}
    parts |= {} if run.judge.judge_model is None else {"judge_model": run.judge.judge_model}
    parts |= {"dtype": "bfloat16"} if run.optimisation.autocast else {}
    digest = _digest(parts)
    folder, summary = _paths(config, START, seed, digest)
    evaluations = tuple(
        _evaluation_command(config, run, seed, config.model, split, folder)
        for split in ("test", "validation")
    )
    return Trial(
        "start", START, seed, None, config.model, digest, folder, summary, (), evaluations, {}
    )


def _evaluation_command(
    config: Config, run: RunConfig, seed: int, model: str, split: str, folder: Path
) -> tuple[str, ...]:
    tasks = config.eval_tasks if split == "test" else config.validation_tasks
    samples = config.samples if split == "test" else 1
    arguments = ["--model", model, "--env", config.env, "--split", split, "--tasks", str(tasks)]
    arguments += ["--samples", str(samples), "--temperature", repr(config.temperature)]
    arguments += ["--seed", str(seed), "--threads", "1"]
    arguments += ["--out", str(evaluation_folder(folder, split))]
    arguments += ["--dtype", "bfloat16"] if run.optimisation.autocast else []
    options = run.options()
    for name in (*SHARED, *LIMITS):
        value = options[name]
        words = value if isinstance(value, tuple) else (value,)
        arguments += [] if value is None else [f"--{name.replace('_', '-')}", *map(str, words)]
    return _python_command("learners.evaluate", *arguments, *_judge_arguments(run))


def _judge_arguments(run: RunConfig) -> list[str]:
    """Return the arguments that name a run's judge to an evaluation; none if it has no judge."""
    if run.judge.judge_base is None or run.judge.judge_model is None:
        return []
    arguments = ["--judge-base", run.judge.judge_base, "--judge-model", run.judge.judge_model]
    arguments += ["--judge-key-variable", run.judge.judge_key_variable]
    price = dict(run.limits.prices).get(JUDGE)
    return arguments + ([] if price is None else ["--judge-price", repr(price)])


def _test_options(config: Config) -> dict[str, Any]:
    """Return the options that decide the numbers of the final evaluation."""
    names = ("eval_tasks", "samples", "temperature")
    return {name: getattr(config, name) for name in names}


def _digest(parts: dict[str, Any]) -> str:
    text = json.dumps(parts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def _paths(config: Config, method: Method, seed: int, digest: str) -> tuple[Path, Path]:
    """Return a trial's folder and the file of its summary."""
    name = f"{method.slug}-{seed}-{digest}"
    return runs_folder(config) / name, Path(config.results) / config.name / f"{name}.json"


def _python_command(module: str, *arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-m", module, *arguments)
