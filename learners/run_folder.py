"""The folder of a run: what lies where, who may write it, and on which machine it was made."""

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
"""Fields that a resumed run may change: they do not alter what an iteration computes."""


VALIDATION_FOLDER = "validation"
"""What each task was worth, a file per validation."""


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
    wanted = {"method": method, **config.options()}
    wanted = json.loads(json.dumps(wanted))
    if path.exists():
        # A run of an earlier version did what the fields it did not have say by default.
        defaults = type(config)().options()
        found = json.loads(json.dumps(defaults)) | json.loads(path.read_text())
        free = FREE_TO_CHANGE - {"iterations"} if config.depends_on_length else FREE_TO_CHANGE
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


def newest_model(name: str) -> str:
    """The folder of the newest checkpoint where `name` is a run's folder; else the name itself."""
    folder = Path(name)
    found = list_checkpoints(folder)
    return str(checkpoint_folder(folder, found[-1])) if found else name


def spent_on_evaluations(folder: Path) -> Counter[str]:
    """What the evaluations and validations of a run that are on file cost, named as in metrics."""
    found: Counter[str] = Counter()
    for path in [*folder.glob("evaluation-*.json"), *(folder / VALIDATION_FOLDER).glob("*.json")]:
        told: dict[str, Any] = json.loads(path.read_text())
        found.update({n: told[n] for n in told if n.startswith(("ledger/", "seconds/"))})
    return found


def write_text(path: Path, text: str) -> None:
    """Replace a file's content atomically."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    sync_to_disk(partial)
    partial.rename(path)


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a line cut by a kill is left out."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    whole = [line for line in path.read_text().split("\n")[:-1] if line]
    return [json.loads(line) for line in whole]


def sync_to_disk(path: Path) -> None:
    """Wait until a file is on the disk."""
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


MACHINE_FILE = "machine.json"


def here() -> dict[str, Any]:
    """What decides the last bits of numbers beside a run's settings."""
    import torch  # heavy, and loaded already where a model is

    return {
        "commit": commit(),
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def noted(folder: Path, iteration: int) -> str | None:
    """Keep in a run's folder where it goes on; a list of its sittings that differ.

    Args:
        folder: of the run.
        iteration: that comes next.

    Returns:
        What is not as it was when the run was left, for people; None where all is.
    """
    path, now = folder / MACHINE_FILE, here()
    sittings: list[dict[str, Any]] = json.loads(path.read_text()) if path.exists() else []
    last = sittings[-1] if sittings else now
    other = [
        f"{name} was {last.get(name)}, now {value}"
        for name, value in now.items()
        if last.get(name) != value
    ]
    if other or not sittings:
        write_text(path, json.dumps([*sittings, {"iteration": iteration, **now}], indent=1) + "\n")
    if not other:
        return None
    return f"{', '.join(other)}: from here on numbers may differ in their last bits"


def processor() -> str:
    """The model of this machine's processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line for line in lines if line.startswith("model name")]
    return named[0].partition(":")[2].strip() if named else platform.machine()


def commit() -> str | None:
    """Of the checkout this module lies in; None where it is none."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=30,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None
