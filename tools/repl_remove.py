"""Deletes work folders, whatever a cell has made of them, and never anything behind a link.

Every step goes by descriptor, so that nothing is looked up twice: a folder swapped for a link
between two looks is not followed. Folders inside are first moved up, so that no depth is too much.
Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import secrets

FOLDER = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
OTHERS = ".~"
"""How the names of other states' folders begin."""


def remove(path: str) -> None:
    """Delete a folder and all that is in it."""
    parent, _, name = path.rpartition("/")
    with contextlib.suppress(OSError):
        above = _reach(parent)
        try:
            top = _enter(above, name)
            try:
                _empty(top, keep_others=False)
            finally:
                os.close(top)
            os.rmdir(name, dir_fd=above)
        finally:
            os.close(above)


def clear(path: str) -> None:
    """Delete what is in a state's folder but for the folders of other states."""
    with contextlib.suppress(OSError):
        top = _reach(path)
        try:
            _empty(top, keep_others=True)
        finally:
            os.close(top)


def _reach(path: str) -> int:
    """A descriptor of the folder; below the sandbox's own no part of the path may be a link."""
    begin, *names = path.split("/" + OTHERS)
    found = os.open(begin, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        above = found
        try:
            found = _enter(above, OTHERS + name)
        finally:
            os.close(above)
    return found


def _enter(above: int, name: str) -> int:
    """Open a folder, if it is one; its owner may have taken away its own permissions."""
    found = os.open(name, os.O_PATH | FOLDER, dir_fd=above)
    try:
        with contextlib.suppress(OSError):
            os.chmod(f"/proc/self/fd/{found}", 0o700)
        return os.open(f"/proc/self/fd/{found}/.", os.O_RDONLY | FOLDER)
    finally:
        os.close(found)


def _empty(top: int, keep_others: bool) -> None:
    """Delete the entries of a folder, until none is left or none can be deleted."""
    before: list[str] = []
    while True:
        names = os.listdir(top)
        if keep_others:
            names = [name for name in names if not name.startswith(OTHERS)]
        if sum(_delete(top, name) for name in names) == 0 and names == before:
            return
        before = names


def _delete(top: int, name: str) -> bool:
    """Delete one entry; folders inside it become entries of `top`. False if it cannot be."""
    try:
        try:
            os.unlink(name, dir_fd=top)
            return True
        except IsADirectoryError:
            inside = _enter(top, name)
        try:
            for entry in os.listdir(inside):
                _take_out(inside, entry, top)
        finally:
            os.close(inside)
        os.rmdir(name, dir_fd=top)
    except OSError:
        return False
    return True


def _take_out(inside: int, entry: str, top: int) -> None:
    try:
        os.unlink(entry, dir_fd=inside)
    except IsADirectoryError:
        # Moving a folder writes its "..", which takes permission to write it.
        os.close(_enter(inside, entry))
        os.rename(entry, "moved" + secrets.token_hex(8), src_dir_fd=inside, dst_dir_fd=top)
