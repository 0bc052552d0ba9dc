"""Calls to the kernel by which a process gives up rights, plus forks, signals and OOM scores.

Runs in any python3 on Linux with the standard library alone. Nothing here grants a right.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct
import sys
from collections.abc import Callable
from time import monotonic, sleep

LIBC = ctypes.CDLL(None, use_errno=True)

PR_SET_DUMPABLE, PR_SET_SECCOMP, PR_CAPBSET_DROP = 4, 22, 24
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 36, 38

# Landlock file system rights, by bit.
EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
READ = EXECUTE | READ_FILE | READ_DIR
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

SCOPE_SOCKET_AND_SIGNAL = 3

SYS_LANDLOCK_CREATE, SYS_LANDLOCK_ADD, SYS_LANDLOCK_RESTRICT = 444, 445, 446

OOM_SCORE_IDLE, OOM_SCORE_RUNNING = 800, 1000
"""OOM scores of idle states, and of cells with everything that they start."""

FORK_PATIENCE = 2.0
"""Seconds for which a fork that finds no room for a process is retried."""

ALL_SIGNALS = b"\xff" * 128
"""The set of all signals in the C library's form, one bit each."""

_FORK = ctypes.PyDLL(None, use_errno=True).fork


def prctl(option: int, argument: int) -> None:
    """Make a prctl call with one argument; OSError if it is refused."""
    if LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} refused")


def set_oom_score(pid: int, score: int = OOM_SCORE_IDLE) -> None:
    """Set how readily the system kills a process: cells before states, both before the learner."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/oom_score_adj", "w") as file:
        file.write(str(score))


def drop_capabilities() -> None:
    """Give up every capability for good: root keeps only what its user id owns."""
    LIBC.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    for capability in range(64):
        LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0)
    header = struct.pack("Ii", 0x20080522, 0)
    if LIBC.capset(header, struct.pack("6I", 0, 0, 0, 0, 0, 0)) < 0:
        raise OSError(ctypes.get_errno(), "capset refused")


def query_landlock_abi() -> int:
    """Return the version of Landlock that the kernel offers; 0 if it has none."""
    return max(0, int(LIBC.syscall(SYS_LANDLOCK_CREATE, None, 0, 1)))


def select_outermost(paths: list[str]) -> list[str]:
    """Resolve the paths that exist and leave out those inside another."""
    real = sorted({os.path.realpath(path) for path in paths if os.path.exists(path)})
    outermost: list[str] = []
    for path in real:
        if not outermost or not path.startswith(outermost[-1].rstrip("/") + "/"):
            outermost.append(path)
    return outermost


class LandlockLayer:
    """The layer that each state adds: read `roots`, write one folder, signal descendants only."""

    def __init__(self, roots: list[str], devices: list[str], abi: int) -> None:
        self.abi = abi
        self.rights = (1 << 13) - 1
        self.rights |= (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0)
        self.rights |= IOCTL_DEV if abi >= 5 else 0
        self.rules: list[tuple[int, int]] = []
        for path in select_outermost(roots if abi else []):
            fd = os.open(path, os.O_PATH)
            self.rules.append((fd, READ if os.path.isdir(path) else EXECUTE | READ_FILE))
        for path in filter(os.path.exists, devices if abi else []):
            self.rules.append((os.open(path, os.O_PATH), READ_FILE | WRITE_FILE))

    def confine(self, folder: str) -> None:
        """Confine this process for good: writes under `folder`, signals to its descendants."""
        if not self.abi:
            return
        size = 24 if self.abi >= 6 else 8
        scope = SCOPE_SOCKET_AND_SIGNAL if self.abi >= 6 else 0
        attributes = struct.pack("QQQ", self.rights, 0, scope)
        ruleset = LIBC.syscall(SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
        if ruleset < 0:
            raise OSError(ctypes.get_errno(), "landlock_create_ruleset refused")
        folder_fd = os.open(folder, os.O_PATH)
        try:
            for fd, rights in [*self.rules, (folder_fd, self.rights)]:
                rule = struct.pack("=Qi", rights, fd)
                if LIBC.syscall(SYS_LANDLOCK_ADD, ruleset, 1, rule, 0) < 0:
                    raise OSError(ctypes.get_errno(), "landlock_add_rule refused")
            if LIBC.syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0) < 0:
                raise OSError(ctypes.get_errno(), "landlock_restrict_self refused")
        finally:
            os.close(folder_fd)
            os.close(ruleset)


def fork() -> int:
    """Fork by the C library, in half the time of `os.fork`, which does more around the call.

    Only for a process with a single thread: Python's own state needs no repair then, and
    `random` is not seeded anew.
    """
    pid = int(_FORK())
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork refused")
    return pid


def fork_with_retries(fork: Callable[[], int]) -> int:
    """Fork; if there is no room for a process, try again for up to `FORK_PATIENCE` seconds."""
    until = monotonic() + FORK_PATIENCE
    while True:
        try:
            return fork()
        except BlockingIOError:
            if monotonic() > until:
                raise
            sleep(0.02)


def request_huge_pages(ranges: list[list[int]]) -> None:
    """Collapse mapped memory into huge pages; a kernel that cannot do it goes on without."""
    for address, length in ranges:
        LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 25)


def set_subreaper(enabled: bool) -> None:
    """Adopt grandchildren whose parents have died, or leave them to an ancestor."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, int(enabled), 0, 0, 0)


def build_signal_set(number: int) -> bytes:
    """Return the set that holds one signal."""
    return (1 << number - 1).to_bytes(len(ALL_SIGNALS), sys.byteorder)


def block_signals(blocked: bytes) -> bytes:
    """Block these signals and no others; return the set that was blocked before.

    Python's own call makes an object of each signal, which takes as long as a short cell.
    """
    before = ctypes.create_string_buffer(len(ALL_SIGNALS))
    LIBC.pthread_sigmask(signal.SIG_SETMASK, blocked, before)
    return before.raw


def set_limits(limits: dict[str, int]) -> None:
    """Set limits per process, which children inherit, by their names in `resource`."""
    for name, value in limits.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
