"""What a sandbox and its learner hold once all is dropped: two readings show whether it grows."""

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


def group(leader: int, letters: str = "RSDTtI") -> list[int]:
    """Processes of a process group in these states; the leader among them comes first."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            fields = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] in letters:
            found.append(int(name))
    return sorted(found, key=lambda pid: (pid != leader, pid))


def own_mib(pid: int | str) -> float:
    """Memory that a process has to itself, in MiB: no files, nothing that it gave back."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024


def measure(tool: PythonTool) -> dict[str, float]:
    """What must not grow: descriptors here and in the hub, memory of both, processes per state."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    found = {
        "learner descriptors": len(os.listdir("/proc/self/fd")),
        "learner MiB": own_mib("self"),
        "threads": threading.active_count(),
    }
    sandbox = tool._get_sandbox()
    if sandbox.name == "local":
        hub = sandbox._transport._process.pid
        found["hub descriptors"] = len(os.listdir(f"/proc/{hub}/fd"))
        found["hub MiB"] = own_mib(hub)
        status = tool.status()
        extra = len(group(sandbox.pid)) - 1 - status["states"] - status["spares"]
        found["processes beyond the states"] = extra
        # A process in waiting has descriptors of the hub: readings compare with as many of them.
        found["spares"] = status["spares"]
    return found


def at_rest(tool: PythonTool) -> dict[str, float]:
    """Drop every state and measure once all is quiet; a process waits for the next episode."""
    tool.run(tool.initial_state(ToolContext(seed=0)), "0")
    forget_states(tool)
    sandbox = tool._get_sandbox()
    time.sleep(3)
    # Folders are deleted in the background, but for those of processes in waiting.
    folder = Path(sandbox._transport.folder) if sandbox.name == "local" else Path("/nowhere")
    quiet = time.monotonic() + 60
    while len(list(folder.glob(".~*"))) > tool.status()["spares"]:
        assert time.monotonic() < quiet, "folders that nobody holds"
        time.sleep(0.5)
    assert tool.status()["states"] == 0, "states that nobody holds"
    return measure(tool)


def grown(before: Mapping[str, float], after: Mapping[str, float], growth: float) -> list[str]:
    """Measures that are more than before: of memory more than so many per cent more."""
    most = {name: 1.0 + growth / 100 if "MiB" in name else 1.0 for name in after}
    return [name for name, value in after.items() if value > before[name] * most[name]]


def shown(found: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in found.items())
