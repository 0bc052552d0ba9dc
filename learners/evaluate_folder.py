"""The folder of an evaluation: one at a time works in it, and it holds one evaluation."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from learners.checkpoint import RunFolderError, write_text
from learners.evaluate_config import FREE_TO_CHANGE, OF_GRADING, WHERE_GIVEN, Config


@contextmanager
def opened(folder: Path, config: Config) -> Iterator[Config]:
    """Work in a folder that no other process works in; the config to work by.

    Raises:
        RunFolderError: it is in use, holds another evaluation, or none to grade again.
    """
    path = folder / "config.json"
    stored = json.loads(path.read_text()) if path.exists() else None
    if config.regrade:
        if stored is None:
            raise RunFolderError(f"{folder} holds no evaluation to grade again; give its --out")
        config = _regraded(stored, config)
    elif stored is not None:
        _check_same(folder, stored, _stored(config))
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunFolderError(f"another process is evaluating into {folder}") from error
        if not config.regrade:
            write_text(path, json.dumps(_stored(config), indent=1))
        yield config


def _stored(config: Config) -> dict[str, Any]:
    """The config as JSON gives it back."""
    return dict(json.loads(json.dumps(asdict(config))))


def _regraded(stored: dict[str, Any], config: Config) -> Config:
    fields: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in stored.items()}
    given = asdict(config)
    taken = {name: given[name] for name in OF_GRADING}
    taken |= {name: given[name] for name in WHERE_GIVEN if given[name] is not None}
    if config.all or config.env:
        taken |= {"all": config.all, "env": config.env}
    return replace(Config(**fields), **taken)


def _check_same(folder: Path, stored: dict[str, Any], wanted: dict[str, Any]) -> None:
    names = (stored.keys() | wanted.keys()) - FREE_TO_CHANGE
    other = [n for n in sorted(names) if stored.get(n) != wanted.get(n)]
    if other:
        listed = ", ".join(f"{n} was {stored.get(n)!r}, now {wanted.get(n)!r}" for n in other)
        raise RunFolderError(
            f"{folder} holds another evaluation: {listed}. Give --out another folder, or the "
            "arguments of that evaluation to go on with it."
        )
