"""Options of a comparison, the table of methods, and the parsers of options that are texts."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

from learners.config import RunConfig
from learners.errors import UsageError
from learners.ledger import StopUnit

Unit = Literal[StopUnit, "iterations"]

METHODS = {
    "appo": "learners.appo",
    "grpo": "learners.grpo",
    "arpo": "learners.arpo",
    "aepo": "learners.aepo",
    "tree_grpo": "learners.tree_grpo",
    "reinforce_pp": "learners.reinforce_pp",
    "dapo": "learners.dapo",
    "gppo": "learners.gppo",
    "cispo": "learners.cispo",
    "gigpo": "learners.gigpo",
    "rloo": "learners.rloo",
    "dr_grpo": "learners.dr_grpo",
    "gspo": "learners.gspo",
}
"""Modules of the methods, by name. A module outside this table is named in full."""


@dataclass(frozen=True)
class Config:
    """Options of `learners.compare`."""

    spec: str | None = None
    """TOML file with any of these options; the command line overrides it."""
    name: str = "comparison"
    """Name of the comparison, and of its folders in --results and in runs/compare/."""
    env: str = "appo/SyntheticQA-v0"
    """Environment id. Training uses its training source, the final evaluation its test split."""
    methods: tuple[str, ...] = ("grpo", "arpo", "appo")
    """Methods, each with options of its own and a label if you like: grpo, 'appo --layers 2',
    'no future = appo --future-weight 0'. Your own method is a module that `python -m` runs, as in
    my_package.my_method; it looks like learners/grpo.py: a Config, an iteration, and at its end
    if __name__ == "__main__": main("my_package.my_method")."""
    seeds: int = 5
    """Runs of each method, with seeds 0, 1, ...; a seed has the same tasks and draws for all."""
    budget: str = "tokens=200000"
    """End of every run: tokens (sampled in training), flops (of the policy), calls (of tools),
    seconds or iterations. A run ends after the iteration that reaches it."""
    model: str = "runs/start"
    """Model that every run starts from."""
    start: tuple[str, ...] = ()
    """Options of learners.sft that make --model if it does not exist: model=tiny seed=1."""
    level: str | None = None
    """Keep only tasks of this difficulty, in training and in evaluations."""
    data_dir: str | None = None
    """Folder of rows, in place of the public data sets."""
    settings: tuple[str, ...] = ()
    """Options of all runs, any of learners.<method>: prompts=16 tools='search calculator'.
    Evaluations use the same tools, search and limits."""
    eval_every: int = 10
    """Iterations between points of the learning curve."""
    validation_tasks: int = 100
    """Validation tasks of each point."""
    eval_tasks: int = 200
    """Test tasks of the final evaluation."""
    samples: int = 8
    """Episodes of each test task; pass@k is reported up to this k."""
    temperature: float = 1.0
    """Sampling temperature of all evaluations."""
    rates: tuple[float, ...] = ()
    """Learning rates that are tried for every method first, on seeds of their own; the best last
    point of the learning curve wins. None: each method's default rate."""
    tuning_seeds: int = 1
    """Seeds of each learning rate that is tried."""
    against: str | None = None
    """Label of the method that the others are compared with; None: appo, or else the first."""
    jobs: int = 1
    """Runs at the same time, one thread each."""
    price_hour: float = 0.0
    """Price of one job on your machine for an hour, for the estimate and the report. Prices of
    tools are a setting, prices=..."""
    dry_run: bool = False
    """Print what would run, how long it takes and what it costs. If no run has been timed yet, one
    iteration is run for the estimate."""
    report_only: bool = False
    """Run nothing; write the report of the runs that have a summary."""
    out: str | None = None
    """Folder of the runs; runs/compare/<name> by default. Run the same command to resume."""
    results: str = "results"
    """Folder of the summaries, a few KB per run. A run that has a summary is not run again."""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range or names nothing."""
        counts = ("seeds", "eval_every", "validation_tasks", "eval_tasks", "samples", "jobs")
        for name in (*counts, "tuning_seeds"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name.replace('_', '-')} counts from 1")
        if self.temperature <= 0 and self.samples > 1:
            raise UsageError("--temperature 0 makes all --samples the same; give more than 0")
        if self.model == "tiny":
            raise UsageError(
                "--model tiny is new weights, different for every seed; cold-start it first"
            )
        reference_label(self)
        parse_budget(self)
        for method in parse_methods(self):
            if method.module not in METHODS.values():
                load_method(method)


class Method(NamedTuple):
    """A method with options of its own."""

    label: str
    module: str
    arguments: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The label as a part of file names."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-")


class TrainingBudget(NamedTuple):
    """Amount that ends a run when training reaches it."""

    unit: Unit
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:,.15g} {self.unit}"


def default_config(arguments: Sequence[str]) -> Config:
    """Return the config that a command line overrides: that of its --spec, or the defaults.

    Raises:
        UsageError: the spec cannot be read, or has an unknown option.
    """
    paths = [b for a, b in pairwise(arguments) if a == "--spec"]
    paths += [a.split("=", 1)[1] for a in arguments if a.startswith("--spec=")]
    return read_spec(Path(paths[-1])) if paths else Config()


def read_spec(path: Path) -> Config:
    """Read the config of a TOML file; its name is the file's unless the file gives another.

    Raises:
        UsageError: there is no such file, or it has an unknown option.
    """
    try:
        content: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--spec {path}: {error}") from error
    unknown = sorted(content.keys() - {f.name for f in fields(Config)})
    if unknown:
        raise UsageError(
            f"--spec {path}: {', '.join(unknown)}: no option of a comparison; see --help"
        )
    options: dict[str, Any] = {"name": path.stem}
    options |= {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
    return Config(**options | {"spec": str(path)})


def parse_methods(config: Config) -> list[Method]:
    """Parse --methods; modules outside METHODS are not looked for here.

    Raises:
        UsageError: one is no method, or two have the same label.
    """
    methods = []
    for text in config.methods:
        has_label = "=" in text.split(" --")[0]
        label, _, line = text.partition("=") if has_label else ("", "", text)
        name, *arguments = shlex.split(line) or [""]
        name = name.removeprefix("learners.")
        if name not in METHODS and not _is_module_path(name):
            raise UsageError(
                f"--methods {text!r}: {name!r} is not a method; expected one of "
                f"{', '.join(METHODS)}, or a module of your own such as my_package.my_method, with "
                f"{_requirements('my_package.my_method')}"
            )
        label = label.strip() if has_label else " ".join([name, *arguments])
        methods.append(Method(label, METHODS.get(name, name), tuple(arguments)))
    slugs = [method.slug for method in methods]
    if len(set(slugs)) < len(slugs) or "start" in slugs or not methods:
        raise UsageError("--methods: each needs a name of its own, as in 'wide = appo --layers 2'")
    return methods


def load_method(method: Method) -> ModuleType:
    """Import the module of a method.

    Raises:
        UsageError: it cannot be imported, or does not define what a method needs.
    """
    try:
        module = importlib.import_module(method.module)
    except (ImportError, SyntaxError) as error:
        raise UsageError(
            f"--methods {method.module}: this module cannot be imported ({error}); give one that "
            "Python finds from this folder or on PYTHONPATH"
        ) from error
    kind = vars(module).get("Config")
    has_config = isinstance(kind, type) and issubclass(kind, RunConfig)
    if not has_config or not callable(vars(module).get("iteration")):
        lacking = "iteration" if has_config else "Config that is a learners.config.RunConfig"
        raise UsageError(
            f"--methods {method.module}: this module has no {lacking}; a method is a module with "
            f"{_requirements(method.module)}"
        )
    return module


def _is_module_path(name: str) -> bool:
    return "." in name and all(part.isidentifier() for part in name.split("."))


def _requirements(module: str) -> str:
    """Return what the module of a method must have, for error messages."""
    return (
        f'Config, iteration and the lines if __name__ == "__main__": main("{module}") that '
        "`python -m` runs, as in learners/grpo.py"
    )


def to_arguments(settings: Sequence[str]) -> list[str]:
    """Turn settings (name=value) into command-line arguments; one without a value is a flag."""
    arguments = []
    for setting in settings:
        name, _, value = setting.partition("=")
        arguments += [f"--{name.strip().replace('_', '-')}", *shlex.split(value)]
    return arguments


def parse_budget(config: Config) -> TrainingBudget:
    """Parse --budget.

    Raises:
        UsageError: it is not unit=amount.
    """
    unit, _, amount = config.budget.partition("=")
    units = (*get_args(StopUnit), "iterations")
    try:
        budget = TrainingBudget(unit.strip(), float(amount))  # type: ignore[arg-type]
    except ValueError:
        budget = TrainingBudget("tokens", 0)
    if budget.unit not in units or budget.amount <= 0:
        raise UsageError(f"--budget {config.budget}: expected {'=..., '.join(units)}=...")
    return budget


def reference_label(config: Config) -> str:
    """Return the label of the method that the others are compared with.

    Raises:
        UsageError: --against names none.
    """
    labels = [method.label for method in parse_methods(config)]
    label = config.against or ("appo" if "appo" in labels else labels[0])
    if label not in labels:
        raise UsageError(f"--against {label}: none of {', '.join(labels)}")
    return label
