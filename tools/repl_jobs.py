"""What the hub keeps: live states, the cells they are running, the folders they write in.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import shutil
import signal
import subprocess
import threading
import time

from tools import repl_usage as usage
from tools.repl_link import Link, Message, Output

LOOK = 0.004
"""Seconds between two looks at what a cell uses, times the number of cells running."""


class Folder:
    """A state's work folder: inside its parent's, there as long as any state inside it."""

    def __init__(self, path: str, parent: Folder | None) -> None:
        self.path = path
        self.parent = parent
        self.users = 1
        if parent is not None:
            parent.users += 1

    def release(self, remover: Remover) -> None:
        """The state is gone; the folder goes with it or with the last state inside it."""
        self.users -= 1
        if self.users == 0 and self.parent is not None:
            remover.paths.put(self.path)
            self.parent.release(remover)


class Remover:
    """Deletes folders in a thread of its own, so that many files hold up nobody."""

    def __init__(self) -> None:
        self.paths: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            path = self.paths.get()
            if path is None:
                return
            remove(path)

    def close(self) -> None:
        """Finish what is queued."""
        self.paths.put(None)
        self.thread.join(10)


def remove(path: str) -> None:
    """Delete a tree whose owner may have taken away its own permissions; never follows a link."""

    def open_up(_function: object, failed: str, _error: object) -> None:
        parent = os.path.dirname(failed)
        for place in (parent, failed):
            if not os.path.islink(place):
                with contextlib.suppress(OSError):
                    os.chmod(place, 0o700)

    with contextlib.suppress(OSError, RecursionError):
        shutil.rmtree(path, onerror=open_up)
    if os.path.lexists(path):
        subprocess.run(["rm", "-rf", "--", path], stderr=subprocess.DEVNULL, check=False)


class Job:
    """Cells that one request runs in one process, one after the other. Mutated as they end."""

    def __init__(self, output: Output) -> None:
        self.request = 0
        self.steps: list[Message] = []
        self.output = output
        self.output_open = True
        self.results: list[Message] = []
        self.current: Message | None = None
        self.begun = time.monotonic()
        self.cpu_before = 0.0
        self.look_at_disk = 0.0
        self.look_again = 0.0

    def give(self, request: int, steps: list[Message], results: list[Message]) -> None:
        """What a child was forked for; until then it is a spare."""
        self.request, self.steps, self.results = request, list(reversed(steps)), results
        self.begun = time.monotonic()

    def advance(self) -> Message | None:
        """The next step, now current; None when all are done."""
        self.current = self.steps.pop() if self.steps else None
        return self.current

    def start(self, pid: int) -> None:
        """A step begins now: limits count from here."""
        self.begun = time.monotonic()
        self.cpu_before = usage.usage(pid, 1).cpu if self.results else 0.0

    def record(self, status: str, code: int | None = None) -> None:
        """The current step ended."""
        self.results.append(
            {
                "status": status,
                "code": code,
                "text": self.output.text(),
                "seconds": time.monotonic() - self.begun,
            }
        )

    def over(self, live: Live, limits: dict[str, float], now: float, crowd: int) -> str | None:
        """Which limit the step has passed, if any; `crowd` is the number of running cells."""
        if now - self.begun > limits["wall"]:
            return "wall" if self.current is not None else "fault"
        if self.current is None and now - self.begun > limits["start"]:
            return "fault"
        if not live.pid or now - self.begun < 0.02 or now < self.look_again:
            return None
        # A look costs a few tenths of a millisecond: many cells share what the hub can give.
        self.look_again = now + LOOK * crowd
        used = usage.usage(live.pid, int(limits["processes"]))
        if used.cpu - self.cpu_before > limits["cpu"]:
            return "cpu"
        if used.processes > limits["processes"]:
            return "processes"
        if used.resident > limits["memory"] and memory_of(live.pid) > limits["memory"]:
            return "memory"
        if used.nameless > limits["disk"]:
            return "disk"
        if now >= self.look_at_disk:
            size, entries = usage.folder_size(live.folder.path, int(limits["files"]))
            self.look_at_disk = now + 10 * (time.monotonic() - now)
            if size + used.nameless > limits["disk"] or entries > limits["files"]:
                return "disk"
        return None


def memory_of(pid: int) -> int:
    """Bytes held by a process and its descendants, shared pages counted once."""
    return sum(usage.proportional(member) for member in usage.family(pid, 1000))


class Live:
    """A state's process: frozen when `job` is None, running cells otherwise."""

    def __init__(
        self, handle: int, link: Link, parent: Live | None, folder: Folder, job: Job | None
    ) -> None:
        self.handle = handle
        self.link = link
        self.parent = parent
        self.folder = folder
        self.job = job
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.used = time.monotonic()
        self.pid = 0
        self.pidfd = -1
        self.memory = 0
        self.forks = 0
        self.passing = False
        self.spare: Live | None = None
        self.calm = True
        self.cpu_allowed = 0.0
        self.measured = 0.0

    def identify(self, pid: int) -> None:
        """The kernel said which process speaks for this state (shedding threads changes it)."""
        self.close()
        self.pid = pid
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            self.pidfd = -1

    def kill(self) -> None:
        """SIGKILL, to exactly this process, whatever has become of its number."""
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1
