"""Run folders and checkpoints: atomic, two kept, refused when they belong to another run.

A folder holds config.json, machine.json, metrics.jsonl, rollouts/, checkpoints/<iteration>/. A
checkpoint is written beside its place and renamed, so that a kill at any moment leaves the last one
whole.
"""

import errno
import fcntl
import json
import os
import shutil
from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError

from learners.models import save_model
from learners.policy import Policy
from learners.run_config import RunConfig
from learners.schedules import paced

KEPT = 2
FREE_TO_CHANGE = {
    "iterations",
    "stop_at",
    "out",
    "checkpoint_every",
    "log",
    "patience",
    "run_calls",
    "run_cost",
    "judge_base",
    "judge_key_variable",
    "max_unavailable",
}
"""Fields that a resumed run may change: they do not alter what an iteration computes."""


class RunFolderError(RuntimeError):
    """The folder cannot be used; the message says why and what to do."""


def lock_folder(folder: Path) -> IO[str]:
    """Make the folder and keep every other process from writing a run into it.

    Returns:
        What to close when the run is over; the lock ends with the process, however that ends.

    Raises:
        RunFolderError: another process writes a run there, or it cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = (folder / ".lock").open("a+")
    except OSError as error:
        raise _unwritable(folder, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        pid = lock.read().strip() or "unknown"
        lock.close()
        raise RunFolderError(
            f"process {pid} writes a run into {folder}; wait for it, stop it, or give --out "
            "another folder"
        ) from error
    try:
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
    except OSError as error:
        raise _unwritable(folder, error) from error
    return lock


def _unwritable(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"{folder} cannot be written: {error.strerror}. Give --out a folder that can."
    )


def open_folder(folder: Path, method: str, config: RunConfig) -> int | None:
    """Prepare a run's folder.

    Returns:
        The iteration of the newest checkpoint, None in a new folder.

    Raises:
        RunFolderError: it holds a run of another method or config, or cannot be written.
    """
    path = folder / "config.json"
    wanted = {"method": method, **asdict(config)}
    wanted = json.loads(json.dumps(wanted))
    if path.exists():
        # A run of an earlier version did what the fields it did not have say by default.
        defaults = {f.name: f.default for f in fields(config) if f.default is not MISSING}
        found = json.loads(json.dumps(defaults)) | json.loads(path.read_text())
        free = FREE_TO_CHANGE - {"iterations"} if paced(config) else FREE_TO_CHANGE
        names = (found.keys() | wanted.keys()) - free
        other = {n: (found.get(n), wanted.get(n)) for n in names if found.get(n) != wanted.get(n)}
        # A run that ended before it did anything (no such model, no data) holds nothing to mix up.
        begun = any(not p.name.startswith((".", "config.json")) for p in folder.iterdir())
        if other and begun:
            listed = ", ".join(f"{n} was {a!r}, now {b!r}" for n, (a, b) in sorted(other.items()))
            raise RunFolderError(
                f"{folder} holds another run: {listed}. Give --out another folder, or the "
                "arguments of that run to resume it."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(wanted, indent=1))
    except OSError as error:
        raise _unwritable(folder, error) from error
    checkpoints = list_checkpoints(folder)
    return checkpoints[-1] if checkpoints else None


def list_checkpoints(folder: Path) -> list[int]:
    """Iterations with a whole checkpoint, oldest first."""
    names = [p.name for p in (folder / "checkpoints").glob("*") if p.name.isdigit()]
    return sorted(int(name) for name in names)


def checkpoint_folder(folder: Path, iteration: int) -> Path:
    """Where the model of a checkpoint lies; `--model` takes it."""
    return folder / "checkpoints" / f"{iteration:06d}"


def save_checkpoint(folder: Path, iteration: int, policy: Policy, state: dict[str, Any]) -> None:
    """Write the policy after `iteration` iterations, with everything the next one depends on.

    Raises:
        RunFolderError: the disk is full; the older checkpoints are whole.
    """
    target = checkpoint_folder(folder, iteration)
    partial = target.with_name("partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a run that was killed
    try:
        partial.mkdir(parents=True)
        save_model(policy.loaded, partial)
        optimizer = {"optimizer": policy.optimizer.state_dict(), "updates": policy.updates}
        torch.save(optimizer, partial / "optimizer.pt")
        (partial / "state.json").write_text(json.dumps(state))
        for path in partial.iterdir():
            _to_disk(path)
        if target.exists():
            shutil.rmtree(target)
        partial.rename(target)
        _to_disk(target.parent)
    except (OSError, RuntimeError, SafetensorError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if not disk_full(error):
            raise
        raise RunFolderError(
            f"no space left for checkpoint {iteration} in {folder} (about "
            f"{_needed(policy) / 1e6:.0f} MB). Free some and run the same command: it resumes "
            f"from checkpoint {(list_checkpoints(folder) or [0])[-1]}."
        ) from error
    for old in list_checkpoints(folder)[:-KEPT]:
        shutil.rmtree(checkpoint_folder(folder, old))


def load_checkpoint(folder: Path, iteration: int, policy: Policy) -> dict[str, Any]:
    """Restore optimiser and state; the weights were loaded from the same folder."""
    source = checkpoint_folder(folder, iteration)
    saved = torch.load(source / "optimizer.pt", weights_only=True)
    policy.optimizer.load_state_dict(saved["optimizer"])
    policy.updates = saved["updates"]
    return read_state(folder, iteration)


def read_state(folder: Path, iteration: int) -> dict[str, Any]:
    """What `save_checkpoint` was given beside the policy."""
    path = checkpoint_folder(folder, iteration) / "state.json"
    state: dict[str, Any] = json.loads(path.read_text())
    return state


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    _to_disk(partial)
    partial.rename(path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a line cut by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().split("\n")[:-1] if line]
    return [json.loads(line) for line in whole]


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def disk_full(error: Exception) -> bool:
    """Whether an error means that no byte more can be written here."""
    text = str(error).lower()
    full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    return (
        full or "no space left" in text or "file write failed" in text or "file too large" in text
    )


def _needed(policy: Policy) -> int:
    return 3 * sum(int(p.numel() * p.element_size()) for p in policy.model.parameters())
