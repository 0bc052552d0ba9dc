"""Texts for the model about a cell that was not run or was stopped: which limit, what is left."""

from __future__ import annotations

from tools.sandbox.protocol import Limits

MAX_CELL_CHARACTERS = 100_000
"""Longest cell that is run."""

BROKEN = (
    "[not run: an earlier cell has broken this interpreter (it replaced, closed or blocked what"
    " runs cells), and it cannot go on]"
)


def explain_too_long(cell: str) -> str:
    """Return why a cell was not even sent."""
    return f"[not run: the cell has {len(cell)} characters, {MAX_CELL_CHARACTERS} are allowed]"


def append_note(text: str, note: str) -> str:
    """Return a cell's output with a note on a line of its own."""
    return f"{text}\n{note}" if text and not text.endswith("\n") else text + note


def explain_stop(status: str, code: int | None, limits: Limits) -> str:
    """Return what stopped a cell."""
    reasons = {
        "cpu": f"the cell used more than {limits.cpu:g} s of CPU time",
        "wall": f"the cell took longer than {limits.wall:g} s",
        "memory": f"the cell used more than {limits.memory >> 20} MiB of memory",
        "processes": f"the cell had more than {limits.processes} processes",
        "threads": f"the cell had more than {limits.threads} threads",
        "output": f"the cell wrote more than {limits.output >> 20} MiB of output",
        "disk": f"the work folder held more than {limits.disk >> 20} MiB or {limits.files} files",
        "session_cpu": f"the cells of this session have used more than {limits.session_cpu:g} s of"
        " CPU time in all",
        "session_wall": f"the cells of this session have taken more than {limits.session_wall:g} s"
        " in all",
        "session_output": "the cells of this session have written more than"
        f" {limits.session_output >> 20} MiB of output in all",
        "session_memory": "all branches of this session together used more than"
        f" {limits.session_memory >> 20} MiB of memory, this cell most of it",
        "session_disk": "all branches of this session together held more than"
        f" {limits.session_disk >> 20} MiB of files, this cell most of it",
        "session_processes": "all branches of this session together had more than"
        f" {limits.session_processes} processes and threads, this cell most of them",
        "all_processes": "all sessions of this sandbox together had more than"
        f" {limits.all_processes} processes and threads, this cell most of them",
    }
    how = "" if code is None else f" (signal {-code})" if code < 0 else f" (exit code {code})"
    reason = reasons.get(status, f"the Python process ended{how}")
    return f"[stopped: {reason}. Variables and files are as they were before this cell.]"
