"""The fields of a comparison: which methods, how often, at which budget, judged on what."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from learners.errors import UsageError
from learners.ledger import StopUnit

Unit = Literal[StopUnit, "iterations"]


@dataclass(frozen=True)
class Config:
    """See `learners.compare`."""

    spec: str | None = None
    """TOML file with any of these fields; what the command line gives counts more."""
    name: str = "comparison"
    """Of the comparison: its folder under --results, and under runs/."""
    env: str = "appo/SyntheticQA-v0"
    """Environment id: training takes its training source, the end its test split."""
    methods: tuple[str, ...] = ("grpo", "arpo", "appo")
    """Learners, with arguments of their own where quoted, and a name where one is given: grpo,
    'appo --layers 2', 'no future = appo --future-weight 0'."""
    seeds: int = 5
    """Runs of each method, seeded 0, 1, ...; one seed means the same tasks and draws to all."""
    budget: str = "tokens=200000"
    """Where every run ends: tokens (sampled in training), flops (of the policy), calls (of tools),
    seconds or iterations. An iteration is never cut: a run ends after the one that gets there."""
    model: str = "runs/start"
    """What every run begins with."""
    start: tuple[str, ...] = ()
    """Settings of learners.sft that make --model where it is not there: model=tiny seed=1."""
    level: str | None = None
    """Keep only tasks of this difficulty, in training and evaluations."""
    data_dir: str | None = None
    """Folder of rows instead of the public data sets."""
    settings: tuple[str, ...] = ()
    """Of all runs, any field of learners.<method>: prompts=16 tools='search calculator'.
    Evaluations take over tools, search and limits."""
    eval_every: int = 10
    """Iterations between points of the learning curve."""
    validation_tasks: int = 100
    """Validation tasks of each point."""
    eval_tasks: int = 200
    """Test tasks at the end."""
    samples: int = 8
    """Episodes of each; pass@k goes up to this k."""
    temperature: float = 1.0
    """Of all evaluations."""
    rates: tuple[float, ...] = ()
    """Learning rates that every method tries first, one run each and seed, on seeds of their own;
    the best last point of the learning curve decides. None: each method's own rate."""
    tuning_seeds: int = 1
    """Seeds of that."""
    against: str | None = None
    """The method that all others are held against; None: appo, or the first."""
    jobs: int = 1
    """Runs at a time, one thread each."""
    price_hour: float = 0.0
    """Of one job on your machine, for the estimate and the cost; tools by `--prices`."""
    dry_run: bool = False
    """Say what would be run, how long it takes and what it costs; one iteration of a method that
    was never timed is played for it."""
    report_only: bool = False
    """Run nothing: write the report of the runs that have their summary."""
    out: str | None = None
    """Folder of the runs; runs/compare/<name> by default. Run again to resume."""
    results: str = "results"
    """Folder of the summaries: a few KB a run; what is there is not run again."""


class Method(NamedTuple):
    """A learner with arguments of its own."""

    label: str
    module: str
    arguments: tuple[str, ...]

    @property
    def slug(self) -> str:
        """The label as a part of file names."""
        return re.sub(r"[^A-Za-z0-9.]+", "-", self.label).strip("-")


class Budget(NamedTuple):
    """Where every run ends."""

    unit: Unit
    amount: float

    def __str__(self) -> str:
        return f"{self.amount:,.15g} {self.unit}"


def default_of(arguments: Sequence[str]) -> Config:
    """What a command line changes: the config of its --spec, else the fields' defaults.

    Raises:
        UsageError: the spec cannot be read, or holds what is no field.
    """
    given = [b for a, b in pairwise(arguments) if a == "--spec"]
    given += [a.split("=", 1)[1] for a in arguments if a.startswith("--spec=")]
    return of_spec(Path(given[-1])) if given else Config()


def of_spec(path: Path) -> Config:
    """The config of a TOML file; its name is the file's unless it says another.

    Raises:
        UsageError: there is no such file, or it holds what is no field.
    """
    try:
        found: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))
    except (OSError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"--spec {path}: {error}") from error
    unknown = sorted(found.keys() - {f.name for f in fields(Config)})
    if unknown:
        raise UsageError(f"--spec {path}: {', '.join(unknown)}: no field of a comparison")
    listed: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    listed = {"name": path.stem, **listed, "spec": str(path)}
    return Config(**listed)


def methods(config: Config) -> list[Method]:
    """The methods of a comparison, in order.

    Raises:
        UsageError: one is no learner, or two have one name.
    """
    found = []
    for text in config.methods:
        label, named, line = text.partition("=") if "=" in text.split(" --")[0] else ("", "", text)
        module, *arguments = shlex.split(line) or [""]
        module = module.removeprefix("learners.")
        if not (Path(__file__).parents[1] / f"{module}.py").is_file():
            raise UsageError(f"--methods {text!r}: there is no learners/{module}.py")
        name = label.strip() if named else " ".join([module, *arguments])
        found.append(Method(name, f"learners.{module}", tuple(arguments)))
    slugs = [method.slug for method in found]
    if len(set(slugs)) < len(slugs) or "start" in slugs or not found:
        raise UsageError("--methods: each needs a name of its own, as in 'wide = appo --layers 2'")
    return found


def as_arguments(settings: Sequence[str]) -> list[str]:
    """Settings as a command line takes them; one without a value is a flag."""
    found = []
    for setting in settings:
        name, _, value = setting.partition("=")
        found += [f"--{name.strip().replace('_', '-')}", *shlex.split(value)]
    return found


def budget(config: Config) -> Budget:
    """The budget of a comparison.

    Raises:
        UsageError: it cannot be read.
    """
    unit, _, amount = config.budget.partition("=")
    units = (*get_args(StopUnit), "iterations")
    try:
        found = Budget(unit.strip(), float(amount))  # type: ignore[arg-type]
    except ValueError:
        found = Budget("tokens", 0)
    if found.unit not in units or found.amount <= 0:
        raise UsageError(f"--budget {config.budget}: expected {'=..., '.join(units)}=...")
    return found


def reference(config: Config) -> str:
    """The label of the method that all others are held against.

    Raises:
        UsageError: --against names none.
    """
    labels = [method.label for method in methods(config)]
    wanted = config.against or ("appo" if "appo" in labels else labels[0])
    if wanted not in labels:
        raise UsageError(f"--against {wanted}: none of {', '.join(labels)}")
    return wanted


def refuse(config: Config) -> None:
    """Nothing if a comparison can be made of the numbers.

    Raises:
        UsageError: one is too small, or the model is another for every seed.
    """
    counts = ("seeds", "eval_every", "validation_tasks", "eval_tasks", "samples", "jobs")
    small = [n for n in (*counts, "tuning_seeds") if getattr(config, n) < 1]
    if small:
        raise UsageError(f"--{small[0].replace('_', '-')} counts from 1")
    if config.temperature <= 0 and config.samples > 1:
        raise UsageError("--temperature 0 plays all --samples alike; give more than 0")
    if config.model == "tiny":
        raise UsageError("--model tiny is new weights that know nothing; cold-start it first")
    reference(config)
    budget(config)
