"""What the hub keeps: live states, the cells they are running, the folders they write in.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import signal
import threading
import time
from typing import NamedTuple

from tools.repl import kernel, usage
from tools.repl.link import Link, Message, Output


class Spent(NamedTuple):
    """What the cells that led to a state have used, one after the other: seconds and bytes."""

    cpu: float = 0.0
    wall: float = 0.0
    output: int = 0


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
            remover.paths.put((self.path, True))
            self.parent.release(remover)

    def empty(self, remover: Remover) -> None:
        """The state is gone and nobody copies its files any more: they go before the folder."""
        if self.users > 1:
            remover.paths.put((self.path, False))


class Remover:
    """Deletes folders in a thread of its own, so that many files hold up nobody."""

    def __init__(self) -> None:
        self.paths: queue.SimpleQueue[tuple[str, bool] | None] = queue.SimpleQueue()
        self.thread = threading.Thread(target=self._work, daemon=True)
        self.thread.start()

    def _work(self) -> None:
        while True:
            job = self.paths.get()
            if job is None:
                return
            path, itself = job
            remove(path) if itself else clear(path)

    def close(self) -> None:
        """Finish what is queued."""
        self.paths.put(None)
        self.thread.join(10)


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
        self.wall = 0.0
        self.written = 0
        self.replaying = False
        self.look_at_disk = 0.0
        self.look_again = 0.0

    def give(self, request: int, steps: list[Message], results: tuple[Message, ...]) -> None:
        """What a child was forked for; until then it is a spare."""
        self.request, self.steps, self.results = request, list(reversed(steps)), list(results)
        self.begun = time.monotonic()
        # What was within the session's limits when it first ran is not measured against them again.
        self.replaying = len(steps) + len(results) > 1

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
        seconds = time.monotonic() - self.begun
        self.wall += seconds
        self.written += self.output.total
        self.results.append(
            {
                "status": status,
                "code": code,
                "text": self.output.text(),
                "seconds": seconds,
            }
        )

    def spent(self, live: Live) -> Spent:
        """What the session has used when this state freezes."""
        before = live.before
        cpu = usage.all_cpu(live.pid) if live.pid else 0.0
        return Spent(before.cpu + cpu, before.wall + self.wall, before.output + self.written)

    def wrote_too_much(self, live: Live, limits: dict[str, float]) -> str | None:
        """Which limit of output the step has passed, if any."""
        if self.output.total > limits["output"]:
            return "output"
        if not self.replaying and live.before.output + self.output.total > limits["session_output"]:
            return "session_output"
        return None

    def over(self, live: Live, limits: dict[str, float], now: float, crowd: int) -> str | None:
        """Which limit the step has passed, if any; `crowd` is the number of running cells."""
        if self.current is not None and now - self.begun > limits["wall"]:
            return "wall"
        if not self.replaying and live.before.wall + now - self.begun > limits["session_wall"]:
            return "session_wall"
        if self.current is None and now - self.begun > limits["start"]:
            return "fault"
        if not live.pid or now - self.begun < 0.02 or now < self.look_again:
            return None
        # A look costs a few tenths of a millisecond: many cells share what the hub can give.
        self.look_again = now + LOOK * crowd
        used = usage.usage(live.pid, int(limits["processes"]))
        if used.cpu - self.cpu_before > limits["cpu"]:
            return "cpu"
        if not self.replaying and live.before.cpu + used.cpu > limits["session_cpu"]:
            return "session_cpu"
        live.held.update(memory=used.resident, processes=max(used.processes, used.threads))
        if used.processes > limits["processes"]:
            return "processes"
        if used.threads > limits["threads"]:
            return "threads"
        if used.resident > limits["memory"] and memory_of(live.pid) > limits["memory"]:
            return "memory"
        if used.nameless > limits["disk"]:
            return "disk"
        if now >= self.look_at_disk:
            size, entries = usage.folder_size(live.folder.path, int(limits["files"]))
            live.held["disk"] = size + used.nameless
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
        self.session: int = handle if parent is None or parent.parent is None else parent.session
        self.before: Spent = Spent() if parent is None else parent.spent
        self.spent: Spent = self.before
        self.held = {"memory": 0, "disk": 0, "processes": 1}
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
        kernel.offer_to_the_oom_killer(pid, kernel.RUNNING)
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            self.pidfd = -1

    def freeze(self) -> None:
        """Its cells have ended: it is as new as that, and one process again."""
        assert self.job is not None
        self.spent, self.used = self.job.spent(self), time.monotonic()
        self.held["processes"], self.job = 1, None
        if self.pid:
            kernel.offer_to_the_oom_killer(self.pid)

    def branches(self) -> bool:
        """Whether another child of this state is likelier to come next than one of its newest."""
        return self.parent is not None and self.forks > 1

    def dying(self) -> bool:
        """Whether this state's process has ended or is about to."""
        return self.link.fileno() < 0 or usage.dying(self.pid)

    def kill(self) -> None:
        """SIGKILL, to exactly this process, whatever has become of its number."""
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


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
