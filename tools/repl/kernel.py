"""What the kernel is asked for inside the sandbox: fewer capabilities, calls, files and resources.

Runs in any python3 on Linux with the standard library alone. Everything here takes rights away.
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


def prctl(option: int, argument: int) -> None:
    """Ask for one thing of the process control call; OSError if it is refused."""
    if LIBC.prctl(option, ctypes.c_ulong(argument), 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), f"prctl {option} refused")


STILL, RUNNING = 800, 1000
"""How readily the system kills states that keep still, and cells with all that they start."""


def offer_to_the_oom_killer(pid: int, score: int = STILL) -> None:
    """When memory runs out, let cells die first, then states, then the hub and the learner."""
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


def landlock_abi() -> int:
    """Version of Landlock that this kernel offers here; 0 when there is none."""
    return max(0, int(LIBC.syscall(SYS_LANDLOCK_CREATE, None, 0, 1)))


def outermost(paths: list[str]) -> list[str]:
    """Those that exist, links followed, without any that lie in another."""
    real = sorted({os.path.realpath(path) for path in paths if os.path.exists(path)})
    found: list[str] = []
    for path in real:
        if not found or not path.startswith(found[-1].rstrip("/") + "/"):
            found.append(path)
    return found


class Walls:
    """The Landlock layer that each state adds: reads `roots`, writes one folder, signals down."""

    def __init__(self, roots: list[str], devices: list[str], abi: int) -> None:
        self.abi = abi
        self.rights = (1 << 13) - 1
        self.rights |= (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0)
        self.rights |= IOCTL_DEV if abi >= 5 else 0
        self.rules: list[tuple[int, int]] = []
        for path in outermost(roots if abi else []):
            fd = os.open(path, os.O_PATH)
            self.rules.append((fd, READ if os.path.isdir(path) else EXECUTE | READ_FILE))
        for path in filter(os.path.exists, devices if abi else []):
            self.rules.append((os.open(path, os.O_PATH), READ_FILE | WRITE_FILE))

    def enclose(self, folder: str) -> None:
        """Confine this process for good: writes under `folder`, signals to its descendants."""
        if not self.abi:
            return
        size = 24 if self.abi >= 6 else 8
        scope = SCOPE_SOCKET_AND_SIGNAL if self.abi >= 6 else 0
        attributes = struct.pack("QQQ", self.rights, 0, scope)
        ruleset = LIBC.syscall(SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(size), 0)
        if ruleset < 0:
            raise OSError(ctypes.get_errno(), "landlock_create_ruleset refused")
        own = os.open(folder, os.O_PATH)
        try:
            for fd, rights in [*self.rules, (own, self.rights)]:
                rule = struct.pack("=Qi", rights, fd)
                if LIBC.syscall(SYS_LANDLOCK_ADD, ruleset, 1, rule, 0) < 0:
                    raise OSError(ctypes.get_errno(), "landlock_add_rule refused")
            if LIBC.syscall(SYS_LANDLOCK_RESTRICT, ruleset, 0) < 0:
                raise OSError(ctypes.get_errno(), "landlock_restrict_self refused")
        finally:
            os.close(own)
            os.close(ruleset)


_FORK = ctypes.PyDLL(None, use_errno=True).fork


def fork() -> int:
    """The C library's fork: without what Python does around it, which costs as much again.

    For a process with a single thread only: Python's own state needs no repair then, and
    `random` is not seeded anew.
    """
    pid = int(_FORK())
    if pid < 0:
        raise OSError(ctypes.get_errno(), "fork refused")
    return pid


PATIENCE = 2.0
"""Seconds for which a fork that finds no room for a process is tried again."""


def persist(fork: Callable[[], int]) -> int:
    """Fork; where there is no room for a process just now, again a little later."""
    until = monotonic() + PATIENCE
    while True:
        try:
            return fork()
        except BlockingIOError:
            if monotonic() > until:
                raise
            sleep(0.02)


def collapse(ranges: list[list[int]]) -> None:
    """Ask for huge pages where memory lies already; a kernel that cannot goes on without."""
    for address, length in ranges:
        LIBC.madvise(ctypes.c_void_p(address), ctypes.c_size_t(length), 25)


def adopt_orphans(yes: bool) -> None:
    """Whether grandchildren whose parents have died become children of this process."""
    LIBC.prctl(PR_SET_CHILD_SUBREAPER, int(yes), 0, 0, 0)


EVERY_SIGNAL = b"\xff" * 128
"""A set of signals as the C library has it, a bit for each."""


def only(number: int) -> bytes:
    """The set of one signal."""
    return (1 << number - 1).to_bytes(len(EVERY_SIGNAL), sys.byteorder)


def block_signals(blocked: bytes) -> bytes:
    """Block these and no others; which were blocked before.

    Python's own call makes an object of each, which takes as long as a short cell.
    """
    before = ctypes.create_string_buffer(len(EVERY_SIGNAL))
    LIBC.pthread_sigmask(signal.SIG_SETMASK, blocked, before)
    return before.raw


def set_limits(wanted: dict[str, int]) -> None:
    """Limits per process that children inherit, by the names that `resource` has for them."""
    for name, value in wanted.items():
        kind = getattr(resource, name)
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
