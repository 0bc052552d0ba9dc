"""Experiment trackers that show metrics.jsonl as well: TensorBoard, trackio, wandb.

A tracker gets the lines of metrics.jsonl as they are written: every number under its own name, at
its iteration. Its package is imported only if it is asked for.
"""

from __future__ import annotations

import importlib
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from learners.config import TrackerName
from learners.errors import UsageError

Metrics = Mapping[str, Any]
"""A line of metrics.jsonl."""

Writer = Callable[[Mapping[str, float], int], None]
"""Shows the numbers of an iteration in one tracker."""

PROJECT = "appo-gym"


@contextmanager
def open_trackers(
    names: Sequence[TrackerName],
    folder: Path,
    config: Mapping[str, Any],
    history: Sequence[Metrics],
) -> Iterator[Callable[[Metrics], None]]:
    """Yield a function that shows a line of metrics in every tracker.

    Args:
        names: of the trackers.
        folder: the run's; its name is the run's name in the trackers.
        config: the run's options, shown with it.
        history: lines of a resumed run; TensorBoard's files are rewritten from them.

    Raises:
        UsageError: a tracker's package is not installed.
    """
    makers = {"tensorboard": _open_tensorboard, "trackio": _open_trackio, "wandb": _open_wandb}
    with ExitStack() as stack:
        writers = [stack.enter_context(makers[name](folder, config, history)) for name in names]

        def show(metrics: Metrics) -> None:
            numbers, step = _split_step(metrics)
            for write in writers:
                write(numbers, step)

        yield show


@contextmanager
def _open_tensorboard(
    folder: Path, config: Mapping[str, Any], history: Sequence[Metrics]
) -> Iterator[Writer]:
    """Write event files in <folder>/tensorboard, for `tensorboard --logdir <folder>`."""
    _import("tensorboard", "pip install 'appo-gym[tensorboard]'")
    from torch.utils.tensorboard import SummaryWriter

    # Anew: files of a killed process may hold iterations that the resumed run does again.
    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as events:

        def write(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                events.add_scalar(name, value, step)
            events.flush()

        events.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()), 0)
        for line in history:
            write(*_split_step(line))
        yield write


@contextmanager
def _open_trackio(
    folder: Path, config: Mapping[str, Any], history: Sequence[Metrics]
) -> Iterator[Writer]:
    module = _import("trackio", "pip install trackio")
    resume = "allow" if history else "never"
    module.init(project=PROJECT, name=folder.name, config=dict(config), resume=resume)
    try:
        yield lambda numbers, step: module.log(dict(numbers), step=step)
    finally:
        module.finish()


@contextmanager
def _open_wandb(
    folder: Path, config: Mapping[str, Any], history: Sequence[Metrics]
) -> Iterator[Writer]:
    module = _import("wandb", "pip install wandb")
    run = module.init(
        project=PROJECT,
        name=folder.name,
        id=folder.name,
        dir=str(folder),
        config=dict(config),
        resume="must" if history else "allow",
    )
    try:
        yield lambda numbers, step: run.log(dict(numbers), step=step)
    finally:
        run.finish()


def _split_step(metrics: Metrics) -> tuple[dict[str, float], int]:
    """Split a line into its numbers and its iteration."""
    numbers = {name: float(v) for name, v in metrics.items() if isinstance(v, int | float)}
    step = int(numbers.pop("iteration"))
    return numbers, step


def _import(name: str, install: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--log {name} needs the package {name}: {install}") from error
