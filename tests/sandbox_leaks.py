"""Measures what a sandbox and its learner hold at rest; two readings show whether it grows."""

import ctypes
import gc
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path

from tests.sandboxes import forget_states
from tools.python import PythonTool
from tools.tool import ToolContext


def list_group(leader: int, letters: str = "RSDTtI") -> list[int]:
    """Return the processes of a group in these states; the leader comes first if it is one."""
    members = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] in letters:
            members.append(int(name))
    return sorted(members, key=lambda pid: (pid != leader, pid))


def read_private_mib(pid: int | str) -> float:
    """Return the private memory of a process in MiB: no files, nothing that it has freed."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def measure(tool: PythonTool) -> dict[str, float]:
    """Measure what must not grow: descriptors and memory of learner and hub, and processes."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    usage = {
        "learner descriptors": len(os.listdir("/proc/self/fd")),
        "learner MiB": read_private_mib("self"),
        "threads": threading.active_count(),
    }
    sandbox = tool._get_sandbox()
    if sandbox.name == "local":
        hub = sandbox._transport._process.pid
        usage["hub descriptors"] = len(os.listdir(f"/proc/{hub}/fd"))
        usage["hub MiB"] = read_private_mib(hub)
        status = tool.status()
        extra = len(list_group(sandbox.pid)) - 1 - status["states"] - status["spares"]
        usage["processes beyond the states"] = extra
        # A spare holds descriptors of the hub: only readings with as many spares compare.
        usage["spares"] = status["spares"]
    return usage


def measure_at_rest(tool: PythonTool) -> dict[str, float]:
    """Drop every state and measure once all is quiet, with a spare ready for the next episode."""
    tool.run(tool.initial_state(ToolContext(seed=0)), "0")
    forget_states(tool)
    sandbox = tool._get_sandbox()
    time.sleep(3)
    # Folders are deleted in the background, except those of spares.
    folder = Path(sandbox._transport.folder) if sandbox.name == "local" else Path("/nowhere")
    quiet = time.monotonic() + 60
    while len(list(folder.glob(".~*"))) > tool.status()["spares"]:
        assert time.monotonic() < quiet, "folders without a state"
        time.sleep(0.5)
    assert tool.status()["states"] == 0, "states that were dropped"
    return measure(tool)


def find_growth(
    before: Mapping[str, float], after: Mapping[str, float], growth: float
) -> list[str]:
    """Return the measures that grew; memory may grow by `growth` per cent."""
    allowed = {name: 1.0 + growth / 100 if "MiB" in name else 1.0 for name in after}
    return [name for name, value in after.items() if value > before[name] * allowed[name]]


def format_usage(usage: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in usage.items())
