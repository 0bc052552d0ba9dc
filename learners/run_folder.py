"""The folder of a run: its files, its lock, and the machine that wrote it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import platform
import subprocess
from collections import Counter
from pathlib import Path
from typing import IO, Any

from learners.config import RunConfig
from learners.errors import RunFolderError

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
"""Options that a resumed run may change: they do not alter what an iteration computes."""

MACHINE_FILE = "machine.json"
"""The machines that a run was made on, each with its first iteration."""

VALIDATION_FOLDER = "validation"
"""Results of validations, a file each."""


def lock_folder(folder: Path) -> IO[str]:
    """Create the folder and keep every other process from writing a run into it.

    Returns:
        The lock; close it when the run is over. It also ends with the process, even if killed.

    Raises:
        RunFolderError: another process writes a run there, or the folder cannot be written.
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


def open_folder(folder: Path, method: str, config: RunConfig) -> int | None:
    """Write config.json into a run's folder, unless the folder holds another run.

    Returns:
        The iteration of the newest checkpoint; None if there is none.

    Raises:
        RunFolderError: the folder holds a run of another method or config, or cannot be written.
    """
    path = folder / "config.json"
    options = json.loads(json.dumps({"method": method, **config.options()}))
    if path.exists():
        # A run of an earlier version did what the defaults of the options it lacked say.
        defaults = json.loads(json.dumps(type(config)().options()))
        stored = defaults | json.loads(path.read_text())
        free = FREE_TO_CHANGE - {"iterations"} if config.depends_on_length else FREE_TO_CHANGE
        changes = [
            f"{name} was {stored.get(name)!r}, now {options.get(name)!r}"
            for name in sorted((stored.keys() | options.keys()) - free)
            if stored.get(name) != options.get(name)
        ]
        # A run that failed at the start (no such model, no data) left only its config behind.
        has_results = any(
            not file.name.startswith((".", "config.json")) for file in folder.iterdir()
        )
        if changes and has_results:
            raise RunFolderError(
                f"{folder} holds another run: {', '.join(changes)}. Give --out another folder, or "
                "the arguments of that run to resume it."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(options, indent=1))
    except OSError as error:
        raise _unwritable(folder, error) from error
    return max(list_checkpoints(folder), default=None)


def list_checkpoints(folder: Path) -> list[int]:
    """Iterations that have a complete checkpoint, oldest first."""
    names = [path.name for path in (folder / "checkpoints").glob("*") if path.name.isdigit()]
    return sorted(int(name) for name in names)


def checkpoint_folder(folder: Path, iteration: int) -> Path:
    """The folder of a checkpoint; `--model` takes it."""
    return folder / "checkpoints" / f"{iteration:06d}"


def newest_model(name: str) -> str:
    """The folder of the newest checkpoint if `name` is a run's folder; else `name` itself."""
    folder = Path(name)
    checkpoints = list_checkpoints(folder)
    return str(checkpoint_folder(folder, checkpoints[-1])) if checkpoints else name


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Read the lines of metrics.jsonl, except a last line that was cut by a kill."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().split("\n")[:-1] if line]


def evaluation_costs(folder: Path) -> Counter[str]:
    """The total cost of a run's evaluations and validations, named as in metrics."""
    costs: Counter[str] = Counter()
    for path in [*folder.glob("evaluation-*.json"), *(folder / VALIDATION_FOLDER).glob("*.json")]:
        result: dict[str, Any] = json.loads(path.read_text())
        costs.update({n: v for n, v in result.items() if n.startswith(("ledger/", "seconds/"))})
    return costs


def describe_machine() -> dict[str, Any]:
    """Everything but a run's options that decides the last bits of its numbers."""
    import torch  # heavy, and loaded already if there is a model

    return {
        "commit": _read_commit(),
        "processor": _read_processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def record_machine(folder: Path, iteration: int) -> str | None:
    """Append this machine to a run's list of machines if it differs from the last one.

    Args:
        folder: the run's.
        iteration: the iteration that comes next.

    Returns:
        A line that says how this machine differs from the last one; None if it does not.
    """
    path, machine = folder / MACHINE_FILE, describe_machine()
    machines: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    last = machines[-1] if machines else machine
    changes = [
        f"{name} was {last.get(name)}, now {value}"
        for name, value in machine.items()
        if last.get(name) != value
    ]
    if changes or not machines:
        machines.append({"iteration": iteration, **machine})
        write_text(path, json.dumps(machines, indent=1) + "\n")
    if not changes:
        return None
    return f"{', '.join(changes)}: from here on numbers may differ in their last bits"


def _read_processor() -> str:
    """The model name of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _read_commit() -> str | None:
    """The commit of the checkout that contains this module; None if there is no checkout."""
    try:
        git = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return git.stdout.strip() or None


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    sync_to_disk(partial)
    partial.rename(path)


def sync_to_disk(path: Path) -> None:
    """Wait until a file is on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_disk_full(error: Exception) -> bool:
    """True if an error means that nothing more can be written: disk, quota or file size limit."""
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return True
    text = str(error).lower()  # torch and safetensors raise errors without a number
    return any(
        phrase in text for phrase in ("no space left", "file write failed", "file too large")
    )


def _unwritable(folder: Path, error: OSError) -> RunFolderError:
    return RunFolderError(
        f"{folder} cannot be written: {error.strerror}. Give --out a folder that can."
    )
