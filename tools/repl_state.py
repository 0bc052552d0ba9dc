"""The processes inside the sandbox: one frozen process per state, forked to run a cell.

The first one imports what cells are likely to need and forks sessions; a session forks its first
state, and so on. Each process hears only its own channel. The hub trusts nothing of this: a cell
owns the process it runs in.
"""

from __future__ import annotations

import base64
import gc
import json
import os
import random
import shutil
import signal
import socket
import stat
import struct
import sys
import time
from typing import Any

from tools import repl_kernel as kernel
from tools.repl_cell import Prompt, note

Message = dict[str, Any]


class Channel:
    """One end of the stream between a state and the hub: JSON messages, each after its length."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)

    def send(self, message: Message) -> None:
        body = json.dumps(message).encode()
        data = struct.pack("!I", len(body)) + body
        while data:
            data = data[os.write(self.socket.fileno(), data) :]

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and the descriptors that came with it; None at the end."""
        header, fds, _flags, _address = socket.recv_fds(self.socket, 4, 2)
        size = struct.unpack("!I", header)[0] if len(header) == 4 else 0
        body = b""
        while len(body) < size:
            part = os.read(self.socket.fileno(), size - len(body))
            if not part:
                return None
            body += part
        return (json.loads(body), list(fds)) if size else None


class State:
    """This process: its channel, folder and names. Changed by every cell and in every child."""

    def __init__(self, channel: Channel, settings: Message) -> None:
        self.channel = channel
        self.folder = settings["folder"]
        self.prompt = Prompt()
        self.walls = kernel.Walls(settings["roots"], settings["devices"], kernel.landlock_abi())
        self.open_files: list[int] = []

    def serve(self) -> None:
        """Answer the hub until it closes the channel; a forked child goes on here with its own."""
        while True:
            received = self.channel.receive()
            if received is None:
                os._exit(0)
            message, fds = received
            operation = message["op"]
            if operation == "fork":
                self._fork(message, fds)
            elif operation == "session":
                self._begin_session(message)
            elif operation == "exec":
                self._execute(message)
            elif operation == "reap":
                _reap(message["pid"])

    def _fork(self, message: Message, fds: list[int]) -> None:
        """Become two: the parent stays as it is, the child takes the channel that came."""
        numbers = random.getstate()
        if os.fork():
            for fd in fds:
                os.close(fd)
            return
        random.setstate(numbers)
        self.channel.socket.close()
        self.channel = Channel(fds[0])
        os.dup2(fds[1], 1)
        os.dup2(fds[1], 2)
        os.close(fds[1])
        kernel.LIBC.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._move(message["folder"])
        self.channel.send({"op": "born"})

    def _move(self, folder: str) -> None:
        """Give this state its own copy of the work folder, and walls around it."""
        old, self.folder = self.folder, folder
        os.mkdir(folder)
        copy_folder(old, folder)
        reopen(self.open_files, old, folder)
        os.chdir(folder)
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = folder
        self.walls.enclose(folder)

    def _begin_session(self, message: Message) -> None:
        """Seed every generator and lay out the task's files."""
        seed = message["seed"]
        random.seed(seed)
        numpy = sys.modules.get("numpy")
        if numpy is not None:
            numpy.random.seed(seed % 2**32)
        for name, content in message["files"]:
            with open(name, "wb") as file:
                file.write(base64.b64decode(content))
        self.channel.send({"op": "done", "status": "ok"})

    def _execute(self, message: Message) -> None:
        begun = time.perf_counter()
        status = self.prompt.run(message["cell"])
        seconds = time.perf_counter() - begun
        self._settle()
        self.channel.send({"op": "done", "status": status, "seconds": seconds})
        self.open_files = regular_files()

    def _settle(self) -> None:
        """Leave nothing running beside the main thread, and say so where something was."""
        if os.stat("/proc/self/task").st_nlink > 3:
            note("threads that are still running stop here: they do not go on in the next cell")
            self._shed_threads()
        signal.setitimer(signal.ITIMER_REAL, 0)
        left = end_children()
        if left:
            note(f"{left} process(es) that the cell left running were ended")

    def _shed_threads(self) -> None:
        """Threads do not survive a fork: go on in a child, and end the process that has them."""
        numbers = random.getstate()
        if os.fork():
            os._exit(0)
        random.setstate(numbers)
        kernel.LIBC.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_children() -> int:
    """Kill every descendant; how many there were. Orphans come here because a state adopts them."""
    count = 0
    while True:
        try:
            pid, _status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return count
        if pid:
            continue
        for child in _children():
            try:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                count += 1
            except OSError:
                pass


def _children() -> list[int]:
    found = []
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children") as file:
            found += [int(pid) for pid in file.read().split()]
    return found


def _reap(pid: int) -> None:
    """Take away a child that the hub has killed."""
    try:
        os.waitpid(pid, 0)
    except ChildProcessError:
        return


def copy_folder(source: str, target: str) -> None:
    """Copy files, folders and links, but not the folders of other states (`.~` and a number)."""
    with os.scandir(source) as entries:
        for entry in entries:
            if entry.name.startswith(".~"):
                continue
            new = os.path.join(target, entry.name)
            if entry.is_symlink():
                os.symlink(os.readlink(entry.path), new)
            elif entry.is_dir():
                os.mkdir(new)
                copy_folder(entry.path, new)
            elif entry.is_file():
                shutil.copy2(entry.path, new)


def regular_files() -> list[int]:
    """Descriptors above the standard three that are open on ordinary files."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        fd = int(name)
        try:
            if fd > 2 and stat.S_ISREG(os.fstat(fd).st_mode):
                found.append(fd)
        except OSError:
            continue
    return found


def reopen(fds: list[int], old: str, new: str) -> None:
    """Point open files at this state's own copies, with positions that siblings do not share."""
    import fcntl

    for fd in fds:
        try:
            path = os.readlink(f"/proc/self/fd/{fd}")
            if path.startswith(old + "/"):
                path = new + path[len(old) :]
            flags = fcntl.fcntl(fd, fcntl.F_GETFL) & ~(os.O_CREAT | os.O_TRUNC | os.O_EXCL)
            position = os.lseek(fd, 0, os.SEEK_CUR)
            fresh = os.open(path, flags | os.O_CLOEXEC)
            os.lseek(fresh, position, os.SEEK_SET)
            os.dup2(fresh, fd, inheritable=False)
            os.close(fresh)
        except OSError:
            continue


def warm(modules: list[str]) -> list[str]:
    """Import what cells are likely to use, touch what is slow the first time; what was there."""
    found = []
    for name in modules:
        try:
            __import__(name)
            found.append(name)
        except ImportError:
            continue
    if "sympy" in found:
        import sympy

        x = sympy.Symbol("x")
        sympy.solve(x**2 - 2, x)
        sympy.integrate(sympy.sin(x) * x, x)
    return found


def main(settings: Message) -> None:
    """Be the first process: warmed, limited, never running a cell itself."""
    channel = Channel(os.dup(0))
    kernel.offer_to_the_oom_killer(os.getpid())
    kernel.drop_capabilities()
    found = warm(settings["warm"])
    state = State(channel, settings)
    os.chdir(settings["folder"])
    state.prompt.install()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    kernel.set_limits(*settings["limits"])
    filtered = kernel.filter_system_calls()
    gc.collect()
    gc.freeze()
    versions = {"landlock": state.walls.abi, "filtered": filtered}
    channel.send({"op": "ready", "modules": found, **versions})
    state.serve()
