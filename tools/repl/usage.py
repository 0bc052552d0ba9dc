"""Memory, CPU time and disk space of processes and folders, read from /proc; no cell is asked.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from collections.abc import Iterator, Set
from typing import NamedTuple

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")

PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")

SMALL_TREE = 8
"""Processes up to which a tree is killed without pausing its group."""


class Usage(NamedTuple):
    """Sums over a process and its descendants: CPU in seconds, sizes in bytes."""

    cpu: float
    resident: int
    processes: int
    threads: int
    unlinked: int
    """Deleted files that are still open, and memory files."""


def list_children(pid: int) -> list[int]:
    """Return the direct children of every thread of `pid`; empty if it is gone."""
    children: list[int] = []
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/children") as file:
                children += [int(child) for child in file.read().split()]
    except OSError:
        pass
    return children


def list_tree(pid: int, max_processes: int = 100_000) -> list[int]:
    """Return `pid` and its descendants; stops once there are more than `max_processes`."""
    tree = [pid]
    # The list grows while it is read: breadth first.
    for process in tree:
        if len(tree) > max_processes:
            break
        tree += list_children(process)
    return tree


def read_stat(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the state letter on; empty if it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].decode().split()
    except OSError:
        return []


def read_exit_code(pid: int) -> int | None:
    """Return a dying or dead process's exit code, or minus its signal; None if unknown."""
    values = read_stat(pid)
    if len(values) < 50:
        return None
    return os.waitstatus_to_exitcode(int(values[49]))


def is_dying(pid: int) -> bool:
    """Return True if a process is gone, dead or about to be."""
    values = read_stat(pid)
    return len(values) < 50 or values[0] in "ZX" or values[49] != "0"


@contextlib.contextmanager
def pause_group(group: int) -> Iterator[None]:
    """Stop a whole process group at one stroke, including forks under way; 0: do nothing."""
    if group:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGSTOP)
    try:
        yield
    finally:
        if group:
            with contextlib.suppress(OSError):
                os.killpg(group, signal.SIGCONT)


def kill_tree(pid: int, itself: bool, keep: Set[int] = frozenset(), group: int = 0) -> int:
    """Kill the descendants of `pid`, and `pid` too if `itself`; return how many descendants.

    Each process is stopped before its children are read, so that none is missed. Many processes
    fork faster than they can be stopped one by one: the whole `group` is paused for them.

    Args:
        pid: root of the tree.
        itself: kill the root as well.
        keep: states that are children of a dying one; they live on.
        group: process group of the sandbox.
    """
    with pause_group(group if len(list_tree(pid, SMALL_TREE)) > SMALL_TREE else 0):
        return _kill_tree(pid, itself, keep)


def _kill_tree(pid: int, itself: bool, keep: Set[int]) -> int:
    tree: list[int] = []
    for _round in range(50):
        size = len(tree)
        for process in [pid, *tree]:
            if itself or process != pid:
                send_signal(process, signal.SIGSTOP)
            tree += [c for c in list_children(process) if c not in tree and c not in keep]
        if len(tree) == size:
            break
    for process in [*tree, pid] if itself else tree:
        send_signal(process, signal.SIGKILL)
    return len(tree)


def send_signal(pid: int, number: int) -> None:
    """Send a signal if the process still exists."""
    with contextlib.suppress(OSError):
        os.kill(pid, number)


def measure_tree(pid: int, max_processes: int) -> Usage:
    """Sum the usage of `pid` and its descendants."""
    cpu, resident, threads, unlinked = 0.0, 0, 0, 0
    tree = list_tree(pid, max_processes)
    for process in tree:
        values = read_stat(process)
        if values:
            cpu += sum(int(value) for value in values[11:15]) / TICKS_PER_SECOND
            resident += int(values[21]) * PAGE_BYTES
            threads += int(values[17])
            unlinked += measure_unlinked_files(process)
    return Usage(cpu, resident, len(tree), threads, unlinked)


def build_process_limits(pid: int, limits: dict[str, float]) -> dict[str, int]:
    """Return limits for the first process and its descendants, on top of what it uses now."""
    with open(f"/proc/{pid}/statm") as file:
        pages = [int(field) for field in file.read().split()]
    memory, files = int(limits["memory"]), int(limits["open_files"]) + 32
    return {
        "RLIMIT_DATA": pages[5] * PAGE_BYTES + memory,
        "RLIMIT_AS": pages[0] * PAGE_BYTES + memory * 2,
        "RLIMIT_FSIZE": int(limits["file_size"]),
        "RLIMIT_NOFILE": files,
        "RLIMIT_CORE": 0,
        "RLIMIT_MEMLOCK": 0,
        "RLIMIT_CPU": int(limits["cpu"] * 20 + 60),
    }


def find_huge_ranges(pid: int) -> list[tuple[int, int]]:
    """Return (address, length) of heaps worth huge pages: a fork copies one entry, not 512."""
    size = 2 << 20
    ranges = []
    with open(f"/proc/{pid}/maps") as file:
        for line in file:
            fields = line.split()
            if fields[1].startswith("rw") and (len(fields) < 6 or fields[5] == "[heap]"):
                begin, end = (int(part, 16) for part in fields[0].split("-"))
                first, last = -(-begin // size) * size, end // size * size
                if last > first:
                    ranges.append((first, last - first))
    return ranges


def read_cpu(pid: int) -> float:
    """Return the CPU seconds of one process without its children; 0 if it is gone."""
    values = read_stat(pid)
    return (int(values[11]) + int(values[12])) / TICKS_PER_SECOND if values else 0.0


def read_cpu_with_children(pid: int) -> float:
    """Return the CPU seconds of a process and the children it has waited for; 0 if it is gone."""
    return sum(int(value) for value in read_stat(pid)[11:15]) / TICKS_PER_SECOND


def measure_unlinked_files(pid: int) -> int:
    """Return the bytes in open files that no folder lists: deleted files and memory files."""
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


def read_proportional_memory(pid: int) -> int:
    """Return bytes held by `pid`, with shared pages divided by their users; 0 if it is gone."""
    try:
        with open(f"/proc/{pid}/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0


def measure_folder(path: str, max_entries: int) -> tuple[int, int]:
    """Return (bytes, entries) of a state's folder without those of other states inside it.

    Stops once there are more than `max_entries`.
    """
    size, entries, pending = 0, 0, [path]
    while pending and entries <= max_entries:
        try:
            with os.scandir(pending.pop()) as listing:
                for entry in listing:
                    if entry.name.startswith(".~"):
                        continue
                    entries += 1
                    if entries > max_entries:
                        break
                    about = entry.stat(follow_symlinks=False)
                    size += about.st_blocks * 512
                    if stat.S_ISDIR(about.st_mode):
                        pending.append(entry.path)
        except OSError:
            continue
    return size, entries
