"""What processes and folders use, read from /proc by the hub; no cell is asked.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator, Set
from typing import NamedTuple

TICK = os.sysconf("SC_CLK_TCK")


PAGE = os.sysconf("SC_PAGE_SIZE")


FEW = 8
"""Processes that are ended one by one."""


class Usage(NamedTuple):
    """A cell's processes together: CPU in seconds, sizes in bytes; `nameless` is deleted files."""

    cpu: float
    resident: int
    processes: int
    threads: int
    nameless: int


def children(pid: int) -> list[int]:
    """Direct children of every thread of `pid`; empty when it is gone."""
    found: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                found += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return found


def family(pid: int, most: int = 100_000) -> list[int]:
    """`pid` and its descendants, at most `most` of them."""
    found = [pid]
    for member in found:
        if len(found) > most:
            break
        found += children(member)
    return found


def fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the third on (the state letter); empty when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def exit_code(pid: int) -> int | None:
    """How a dying or dead process ended: its exit code, or minus the signal; None if unknown."""
    values = fields(pid)
    if len(values) < 50:
        return None
    return os.waitstatus_to_exitcode(int(values[49]))


def dying(pid: int) -> bool:
    """Whether a process is gone, dead, or on its way there."""
    values = fields(pid)
    return len(values) < 50 or values[0] in "ZX" or values[49] != "0"


@contextlib.contextmanager
def still(group: int) -> Iterator[None]:
    """Stop a whole process group meanwhile, at one stroke, forks under way included; 0: nothing."""
    if group:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        if group:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGCONT)


def end_family(pid: int, itself: bool, keep: Set[int] = frozenset(), group: int = 0) -> int:
    """Kill the descendants of `pid`, and `pid` if asked; how many descendants.

    Each is stopped before its children are read, so that none is missed; many fork faster than
    they are stopped one by one, so that all of the `group` is held still. `keep` are states that
    hang on a dying one: they live on.
    """
    with still(group if len(family(pid, FEW)) > FEW else 0):
        return _end_all(pid, itself, keep)


def _end_all(pid: int, itself: bool, keep: Set[int]) -> int:
    found: list[int] = []
    for _round in range(50):
        known = len(found)
        for member in [pid, *found]:
            if itself or member != pid:
                send(member, signal.SIGSTOP)
            found += [c for c in children(member) if c not in found and c not in keep]
        if len(found) == known:
            break
    for member in [*found, pid] if itself else found:
        send(member, signal.SIGKILL)
    return len(found)


def send(pid: int, number: int) -> None:
    """A signal, if the process is still there."""
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def usage(pid: int, most: int) -> Usage:
    """Sum over `pid` and its descendants."""
    cpu, resident, threads, nameless = 0.0, 0, 0, 0
    members = family(pid, most)
    for member in members:
        values = fields(member)
        if values:
            cpu += sum(int(value) for value in values[11:15]) / TICK
            resident += int(values[21]) * PAGE
            threads += int(values[17])
            nameless += nameless_bytes(member)
    return Usage(cpu, resident, len(members), threads, nameless)


def process_limits(pid: int, limits: dict[str, float]) -> dict[str, int]:
    """Limits for the first process and its descendants, on top of what it holds now."""
    with open(f"/proc/{pid}/statm") as file:
        pages = [int(field) for field in file.read().split()]
    memory, files = int(limits["memory"]), int(limits["open_files"]) + 32
    return {
        "RLIMIT_DATA": pages[5] * PAGE + memory,
        "RLIMIT_AS": pages[0] * PAGE + memory * 2,
        "RLIMIT_FSIZE": int(limits["file_size"]),
        "RLIMIT_NOFILE": files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_CPU": int(limits["cpu"] * 20 + 60),
    }


def huge_ranges(pid: int) -> list[tuple[int, int]]:
    """(address, length) of heaps worth huge pages: forks copy one entry instead of 512."""
    size = 2 << 20
    found = []
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.split()
            if fields[1].startswith("rw") and (len(fields) < 6 or fields[5] == "[heap]"):
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                first, last = -(-begin // size) * size, end // size * size
                if last > first:
                    found.append((first, last - first))
    return found


def own_cpu(pid: int) -> float:
    """Seconds of CPU of one process without its children; 0 when it is gone."""
    values = fields(pid)
    return (int(values[11]) + int(values[12])) / TICK if values else 0.0


def all_cpu(pid: int) -> float:
    """Seconds of CPU of one process and the children it has waited for; 0 when it is gone."""
    return sum(int(value) for value in fields(pid)[11:15]) / TICK


def nameless_bytes(pid: int) -> int:
    """Bytes in open files that no folder lists: deleted files and memory files."""
    total = 0
    try:
        names = os.listdir(f"/proc/{pid}/fd")
        for name in names if len(names) > 8 else [name for name in names if int(name) > 2]:
            about = os.stat(f"/proc/{pid}/fd/{name}")
            if about.st_nlink == 0 and stat.S_ISREG(about.st_mode):
                total += about.st_blocks * 512
    except OSError:
        pass
    return total


def proportional(pid: int) -> int:
    """Bytes held by `pid`, shared pages divided among their users (PSS); 0 when it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def folder_size(path: str, most: int) -> tuple[int, int]:
    """(bytes, entries) of a state's folder without other states'; stops past `most` entries."""
    size, entries, pending = 0, 0, [path]
    while pending and entries <= most:
        try:
            with os.scandir(pending.pop()) as found:
                for entry in found:
                    if entry.name.startswith(".~"):
                        continue
                    entries += 1
                    if entries > most:
                        break
                    about = entry.stat(follow_symlinks=False)
                    size += about.st_blocks * 512
                    if stat.S_ISDIR(about.st_mode):
                        pending.append(entry.path)
        except OSError:
            continue
    return size, entries
