"""By what and where numbers were made: a run with the same on all of it repeats to the last bit."""

import json
import platform
import subprocess
from pathlib import Path
from typing import Any

FILE = "machine.json"


def here() -> dict[str, Any]:
    """What decides the last bits of numbers beside a run's settings."""
    import torch

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
    from learners.checkpoint import write_text

    path, now = folder / FILE, here()
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
