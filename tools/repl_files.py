"""A state's own copy of the work folder and of the files that its parent had open.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import stat
from typing import BinaryIO


def copy_folder(source: str, target: str) -> int:
    """Copy a folder without the folders of other states; how many entries could not be."""
    missing = 0
    try:
        entries = list(os.scandir(source))
    except OSError:
        return 1
    # A folder in memory lists its newest entry first: so the copy is listed like the original.
    for entry in reversed(entries):
        if entry.name.startswith(".~"):
            continue
        new = os.path.join(target, entry.name)
        try:
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), new)
            elif entry.is_dir():
                os.mkdir(new)
                missing += copy_folder(entry.path, new)
            elif entry.is_file():
                mode = stat.S_IMODE(entry.stat().st_mode)
                with open(entry.path, "rb") as old, create(new, mode) as copy:
                    shutil.copyfileobj(old, copy)
        except (OSError, RecursionError):
            missing += 1
    return missing


def create(path: str, mode: int) -> BinaryIO:
    """A new file; no process in here can change its mode later."""
    return open(path, "xb", opener=lambda path, flags: os.open(path, flags, mode))


class Descriptors:
    """Those above the standard three and below `most`; who asks need not list them again."""

    def __init__(self, most: int) -> None:
        self.numbers = frozenset(range(3, most))
        self.poller = select.poll()
        for fd in self.numbers:
            self.poller.register(fd, 0)

    def regular_files(self) -> list[int]:
        """Those that are open on ordinary files, not just name one."""
        closed = [fd for fd, event in self.poller.poll(0) if event & select.POLLNVAL]
        there = sorted(self.numbers.difference(closed))
        regular = [fd for fd in there if stat.S_ISREG(os.fstat(fd).st_mode)]
        return [fd for fd in regular if not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH]


def reopen(fds: list[int], old: str, new: str) -> int:
    """Point open files at this state's own copies, with positions that siblings do not share.

    Returns:
        How many have lost what was in them: deleted ones that cannot be read.
    """
    lost = 0
    for fd in fds:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        try:
            fresh = _by_name(fd, old, new)
        except OSError:
            copy = _by_content(fd, new)
            lost += copy is None
            fresh = os.open(os.devnull, os.O_RDWR) if copy is None else copy
        os.lseek(fresh, position, os.SEEK_SET)
        os.dup2(fresh, fd, inheritable=False)
        os.close(fresh)
    return lost


def _by_name(fd: int, old: str, new: str) -> int:
    """The file of that name in this state's folder; OSError if the open one was deleted."""
    path = os.readlink(f"/proc/self/fd/{fd}")
    if not os.path.samestat(os.stat(path), os.fstat(fd)):
        raise FileNotFoundError(path)
    if path.startswith(old + "/"):
        path = new + path[len(old) :]
    flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_TRUNC | os.O_EXCL)
    return os.open(path, flags | os.O_CLOEXEC)


def _by_content(fd: int, folder: str) -> int | None:
    """A file without a name that holds the same; None if that cannot be read or written."""
    path = os.path.join(folder, f".{os.urandom(8).hex()}")
    try:
        copy = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    os.unlink(path)
    at = 0
    try:
        while part := os.pread(fd, 1 << 20, at):
            at += os.pwrite(copy, part, at)
    except OSError:
        os.close(copy)
        return None
    return copy
