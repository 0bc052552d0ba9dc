"""Where metrics are shown beside metrics.jsonl: TensorBoard, trackio, wandb.

All read the one stream: a sink gets the lines of metrics.jsonl as they are written, every number
under its own name, at its iteration. The packages are imported when they are asked for.
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

Line = Mapping[str, Any]
"""One line of metrics.jsonl."""


PROJECT = "appo-gym"


@contextmanager
def opened(
    names: Sequence[TrackerName], folder: Path, config: Mapping[str, Any], kept: Sequence[Line]
) -> Iterator[Callable[[Line], None]]:
    """What takes a line and shows it in every sink named.

    Args:
        names: of sinks.
        folder: of the run; its name is the run's name in the sinks.
        config: of the run, shown beside it.
        kept: lines of a run that goes on; TensorBoard's files are written anew from them.

    Raises:
        UsageError: a sink's package is not installed.
    """
    makers = {"tensorboard": _tensorboard, "trackio": _trackio, "wandb": _wandb}
    with ExitStack() as stack:
        writers = [stack.enter_context(makers[name](folder, config, kept)) for name in names]

        def write(line: Line) -> None:
            numbers = {n: float(v) for n, v in line.items() if isinstance(v, int | float)}
            step = int(numbers.pop("iteration"))
            for writer in writers:
                writer(numbers, step)

        yield write


Writer = Callable[[Mapping[str, float], int], None]


@contextmanager
def _tensorboard(folder: Path, config: Mapping[str, Any], kept: Sequence[Line]) -> Iterator[Writer]:
    """Event files under <folder>/tensorboard, for `tensorboard --logdir <folder>`."""
    _needed("tensorboard", "pip install 'appo-gym[tensorboard]'")
    from torch.utils.tensorboard import SummaryWriter

    shutil.rmtree(folder / "tensorboard", ignore_errors=True)
    with SummaryWriter(str(folder / "tensorboard")) as events:

        def write(numbers: Mapping[str, float], step: int) -> None:
            for name, value in numbers.items():
                events.add_scalar(name, value, step)
            events.flush()

        events.add_text("config", "\n".join(f"    {k}: {v}" for k, v in config.items()), 0)
        for line in kept:
            numbers = {n: v for n, v in line.items() if isinstance(v, int | float)}
            write(numbers, int(numbers.pop("iteration")))
        yield write


@contextmanager
def _trackio(folder: Path, config: Mapping[str, Any], kept: Sequence[Line]) -> Iterator[Writer]:
    module = _needed("trackio", "pip install trackio")
    resume = "allow" if kept else "never"
    module.init(project=PROJECT, name=folder.name, config=dict(config), resume=resume)
    try:
        yield lambda numbers, step: module.log(dict(numbers), step=step)
    finally:
        module.finish()


@contextmanager
def _wandb(folder: Path, config: Mapping[str, Any], kept: Sequence[Line]) -> Iterator[Writer]:
    module = _needed("wandb", "pip install wandb")
    run = module.init(
        project=PROJECT,
        name=folder.name,
        id=folder.name,
        dir=str(folder),
        config=dict(config),
        resume="must" if kept else "allow",
    )
    try:
        yield lambda numbers, step: run.log(dict(numbers), step=step)
    finally:
        run.finish()


def _needed(name: str, how: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(f"--log {name} needs the package {name}: {how}") from error
