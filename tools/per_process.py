"""A resource that each process opens for itself: connections and locks do not survive a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

R = TypeVar("R")


class PerProcess(Generic[R]):
    """Opens a resource at the first `get` of every process. Mutated by `get` and `pop`.

    Pickles as its `open` function. A child never touches its parent's resource, not even to close
    it.
    """

    def __init__(self, open: Callable[[], R]) -> None:  # noqa: A002 - the name says what it does
        self._open = open
        self._locks: dict[int, threading.Lock] = {}
        self._resources: dict[int, R] = {}

    def get(self) -> R:
        """Return the resource of this process, opening it if need be."""
        pid = os.getpid()
        resource = self._resources.get(pid)
        if resource is not None:
            return resource
        with self._locks.setdefault(pid, threading.Lock()):
            if pid not in self._resources:
                self._resources[pid] = self._open()
            return self._resources[pid]

    def pop(self) -> R | None:
        """Forget this process's resource and return it, to be closed; None if it is not open."""
        return self._resources.pop(os.getpid(), None)

    def __reduce__(self) -> tuple[type[PerProcess[R]], tuple[Callable[[], R]]]:
        return PerProcess, (self._open,)
