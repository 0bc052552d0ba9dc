"""Live states, the cells that they run, and the folders that they write to.

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
from tools.repl.link import HubMessage, Link, Output

CHECK_INTERVAL = 0.004
"""Seconds between two checks of what a cell uses, times the number of running cells."""

FOLDER_FLAGS = os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

STATE_PREFIX = ".~"
"""Beginning of the names of state folders, which lie inside their parent's folder."""


class SessionUsage(NamedTuple):
    """Sums over the cells that led to a state: seconds and bytes."""

    cpu: float = 0.0
    wall: float = 0.0
    output: int = 0


class Folder:
    """A state's work folder. It lies in its parent's and stays as long as any state inside it."""

    def __init__(self, path: str, parent: Folder | None) -> None:
        self.path = path
        self.parent = parent
        self.users = 1
        if parent is not None:
            parent.users += 1

    def release(self, remover: Remover) -> None:
        """Remove the folder now that its state is gone, or with the last state inside it."""
        self.users -= 1
        if self.users == 0 and self.parent is not None:
            remover.paths.put((self.path, True))
            self.parent.release(remover)

    def empty(self, remover: Remover) -> None:
        """Delete the files of a state that is gone and that no child copies any more.

        The folder itself stays if it has the folders of other states inside.
        """
        if self.users > 1:
            remover.paths.put((self.path, False))


class Remover:
    """Deletes folders in a thread of its own, so that many files do not block the hub."""

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
            remove_folder(path) if itself else clear_folder(path)

    def close(self) -> None:
        """Finish what is queued."""
        self.paths.put(None)
        self.thread.join(10)


class Job:
    """Cells that one request runs in one process, one after the other. Mutated as they end."""

    def __init__(self, output: Output) -> None:
        self.request = 0
        self.steps: list[HubMessage] = []
        self.output = output
        self.output_open = True
        self.results: list[HubMessage] = []
        self.current: HubMessage | None = None
        self.started_at = time.monotonic()
        self.cpu_before = 0.0
        self.wall = 0.0
        self.written = 0
        self.is_replay = False
        self.next_disk_check = 0.0
        self.next_check = 0.0

    def assign(
        self, request: int, steps: list[HubMessage], results: tuple[HubMessage, ...]
    ) -> None:
        """Take the steps of a request; until then the child is a spare."""
        self.request, self.steps, self.results = request, list(reversed(steps)), list(results)
        self.started_at = time.monotonic()
        # A replay was within the session's limits when it first ran; it is not measured again.
        self.is_replay = len(steps) + len(results) > 1

    def advance(self) -> HubMessage | None:
        """Make the next step the current one and return it; None if all are done."""
        self.current = self.steps.pop() if self.steps else None
        return self.current

    def start(self, pid: int) -> None:
        """Count limits from now on, because a step begins."""
        self.started_at = time.monotonic()
        self.cpu_before = usage.measure_tree(pid, 1).cpu if self.results else 0.0

    def record(self, status: str, code: int | None = None) -> None:
        """Add the result of the current step, which has ended."""
        seconds = time.monotonic() - self.started_at
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

    def measure_session(self, state: LiveState) -> SessionUsage:
        """Return what the session has used once this state freezes."""
        before = state.usage_before
        cpu = usage.read_cpu_with_children(state.pid) if state.pid else 0.0
        return SessionUsage(before.cpu + cpu, before.wall + self.wall, before.output + self.written)

    def check_output(self, state: LiveState, limits: dict[str, float]) -> str | None:
        """Return the limit of output that the step exceeds, if any."""
        if self.output.total > limits["output"]:
            return "output"
        before = state.usage_before.output
        if not self.is_replay and before + self.output.total > limits["session_output"]:
            return "session_output"
        return None

    def check(
        self, state: LiveState, limits: dict[str, float], now: float, running: int
    ) -> str | None:
        """Return the limit that the step exceeds, if any; `running` counts the running cells."""
        before, elapsed = state.usage_before, now - self.started_at
        if self.current is not None and elapsed > limits["wall"]:
            return "wall"
        if not self.is_replay and before.wall + elapsed > limits["session_wall"]:
            return "session_wall"
        if self.current is None and elapsed > limits["start"]:
            return "fault"
        if not state.pid or elapsed < 0.02 or now < self.next_check:
            return None
        # A check costs a few tenths of a millisecond: many cells share what the hub can spend.
        self.next_check = now + CHECK_INTERVAL * running
        tree = usage.measure_tree(state.pid, int(limits["processes"]))
        if tree.cpu - self.cpu_before > limits["cpu"]:
            return "cpu"
        if not self.is_replay and before.cpu + tree.cpu > limits["session_cpu"]:
            return "session_cpu"
        state.footprint.update(memory=tree.resident, processes=max(tree.processes, tree.threads))
        if tree.processes > limits["processes"]:
            return "processes"
        if tree.threads > limits["threads"]:
            return "threads"
        if tree.resident > limits["memory"] and measure_memory(state.pid) > limits["memory"]:
            return "memory"
        if tree.unlinked > limits["disk"]:
            return "disk"
        if now >= self.next_disk_check:
            size, entries = usage.measure_folder(state.folder.path, int(limits["files"]))
            state.footprint["disk"] = size + tree.unlinked
            # A folder that takes long to read is read less often: a tenth of the time at most.
            self.next_disk_check = now + 10 * (time.monotonic() - now)
            if size + tree.unlinked > limits["disk"] or entries > limits["files"]:
                return "disk"
        return None


def measure_memory(pid: int) -> int:
    """Return bytes held by a process and its descendants, shared pages counted once."""
    return sum(usage.read_proportional_memory(process) for process in usage.list_tree(pid, 1000))


class LiveState:
    """A state's process: frozen if `job` is None, else running cells or waiting for its first."""

    def __init__(
        self, handle: int, link: Link, parent: LiveState | None, folder: Folder, job: Job | None
    ) -> None:
        self.handle = handle
        self.link = link
        self.parent = parent
        self.folder = folder
        self.job = job
        self.depth: int = 0 if parent is None else parent.depth + 1
        self.last_used = time.monotonic()
        self.pid = 0
        self.pidfd = -1
        self.session: int = handle if parent is None or parent.parent is None else parent.session
        self.usage_before: SessionUsage = SessionUsage() if parent is None else parent.usage
        self.usage: SessionUsage = self.usage_before
        self.footprint = {"memory": 0, "disk": 0, "processes": 1}
        self.forks = 0
        self.is_transient = False
        """True if it only passes its cells on to a child that has no threads."""
        self.spare: LiveState | None = None
        self.misbehaved = False
        self.cpu_allowance = 0.0
        self.measured_at = 0.0

    def identify(self, pid: int) -> None:
        """Take the process id that the kernel gave for this state."""
        self.close()
        self.pid = pid
        kernel.set_oom_score(pid, kernel.OOM_SCORE_RUNNING)
        try:
            self.pidfd = os.pidfd_open(pid)
        except OSError:
            self.pidfd = -1

    def freeze(self) -> None:
        """Become a state: its cells have ended, and it is a single process again."""
        assert self.job is not None
        # It counts as used now, not when its cells began: a long replay must not be evicted first.
        self.usage, self.last_used = self.job.measure_session(self), time.monotonic()
        self.footprint["processes"], self.job = 1, None
        if self.pid:
            kernel.set_oom_score(self.pid)

    def is_branching(self) -> bool:
        """Return True if this state is likelier to be forked next than its newest child."""
        return self.parent is not None and self.forks > 1

    def is_dying(self) -> bool:
        """Return True if this state's process has ended or is about to."""
        return self.link.fileno() < 0 or usage.is_dying(self.pid)

    def kill(self) -> None:
        """Send SIGKILL to exactly this process, even if its number has been reused."""
        if self.pidfd >= 0:
            with contextlib.suppress(OSError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def close(self) -> None:
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


def remove_folder(path: str) -> None:
    """Delete a folder and everything in it."""
    parent, _, name = path.rpartition("/")
    with contextlib.suppress(OSError):
        parent_fd = _open_path(parent)
        try:
            fd = _open_folder(parent_fd, name)
            try:
                _delete_entries(fd, keep_states=False)
            finally:
                os.close(fd)
            os.rmdir(name, dir_fd=parent_fd)
        finally:
            os.close(parent_fd)


def clear_folder(path: str) -> None:
    """Delete everything in a state's folder except the folders of other states."""
    with contextlib.suppress(OSError):
        fd = _open_path(path)
        try:
            _delete_entries(fd, keep_states=True)
        finally:
            os.close(fd)


def _open_path(path: str) -> int:
    """Open a folder; below the sandbox's own, no part of the path may be a link."""
    root, *names = path.split("/" + STATE_PREFIX)
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for name in names:
        parent_fd = fd
        try:
            fd = _open_folder(parent_fd, STATE_PREFIX + name)
        finally:
            os.close(parent_fd)
    return fd


def _open_folder(parent_fd: int, name: str) -> int:
    """Open a folder but no link; restore its permissions, which its owner may have removed."""
    path_fd = os.open(name, os.O_PATH | FOLDER_FLAGS, dir_fd=parent_fd)
    try:
        with contextlib.suppress(OSError):
            os.chmod(f"/proc/self/fd/{path_fd}", 0o700)
        return os.open(f"/proc/self/fd/{path_fd}/.", os.O_RDONLY | FOLDER_FLAGS)
    finally:
        os.close(path_fd)


def _delete_entries(fd: int, keep_states: bool) -> None:
    """Delete the entries of a folder until none is left or none can be deleted."""
    before: list[str] = []
    while True:
        names = os.listdir(fd)
        if keep_states:
            names = [name for name in names if not name.startswith(STATE_PREFIX)]
        if sum(_delete_entry(fd, name) for name in names) == 0 and names == before:
            return
        before = names


def _delete_entry(fd: int, name: str) -> bool:
    """Delete one entry; what a folder holds moves up into `fd`. False if it cannot be deleted.

    Moving up instead of recursing needs no deep stack and no long path, however deep the folders.
    """
    try:
        try:
            os.unlink(name, dir_fd=fd)
            return True
        except IsADirectoryError:
            inner_fd = _open_folder(fd, name)
        try:
            for entry in os.listdir(inner_fd):
                _move_up(inner_fd, entry, fd)
        finally:
            os.close(inner_fd)
        os.rmdir(name, dir_fd=fd)
    except OSError:
        return False
    return True


def _move_up(inner_fd: int, entry: str, fd: int) -> None:
    try:
        os.unlink(entry, dir_fd=inner_fd)
    except IsADirectoryError:
        # Moving a folder rewrites its "..", which takes permission to write to it.
        os.close(_open_folder(inner_fd, entry))
        os.rename(entry, "moved" + secrets.token_hex(8), src_dir_fd=inner_fd, dst_dir_fd=fd)
