"""The processes inside the sandbox: one frozen process per state, forked to run a cell.

The first one imports what cells are likely to need and forks sessions; a session forks its first
state, and so on. Each process hears only its own channel. The hub trusts nothing of this: a cell
owns the process it runs in.
"""

from __future__ import annotations

import base64
import gc
import json
import linecache
import os
import random
import resource
import signal
import socket
import struct
import sys
import tempfile
import threading
from typing import Any

from tools.repl import kernel
from tools.repl.cell import Descriptors, Prompt, copy_folder, create, note, reopen
from tools.repl.filter import filter_system_calls

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
        header, ancillary, _flags, _address = self.socket.recvmsg(4, socket.CMSG_SPACE(8))
        fds: list[int] = []
        for _level, _kind, data in ancillary:
            fds += struct.unpack(f"{len(data) // 4}i", data[: len(data) // 4 * 4])
        size = struct.unpack("!I", header)[0] if len(header) == 4 else 0
        body = b""
        while len(body) < size:
            part = os.read(self.socket.fileno(), size - len(body))
            if not part:
                return None
            body += part
        return (json.loads(body), fds) if size else None


class State:
    """This process: its channel, folder and names. Changed by every cell and in every child."""

    def __init__(self, channel: Channel, settings: Message) -> None:
        self.channel = channel
        self.folder = settings["folder"]
        self.limits = settings["limits"]
        self.prompt = Prompt(self.limits)
        self.walls = kernel.Walls(settings["roots"], settings["devices"], kernel.landlock_abi())
        self.open_files: list[int] = []
        self.missing = 0
        self.dead: list[int] = []
        self.has_files = False
        self.alone = True
        self.mask = kernel.only(signal.SIGCONT)
        files = settings["limits"]["open_files"]
        self.cell_files, self.own_files = (files, files + 32), (files + 32, files + 32)
        self.descriptors = Descriptors(files + 32)

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
                self.channel.send({"op": "done", "status": "ok"})
                self._look_around()
            elif operation == "exec":
                self._execute(message)
            elif operation == "reap":
                self._bury(message["pid"])

    def _bury(self, pid: int) -> None:
        """Take away children that the hub has ended; others it has yet to look at."""
        self.dead.append(pid)
        self.dead = [pid for pid in self.dead if not _buried(pid)]

    def _fork(self, message: Message, fds: list[int]) -> None:
        """Become two: the parent stays as it is, the child takes the channel that came."""
        numbers = None if self.alone else random.getstate()
        try:
            parent = kernel.persist(kernel.fork if self.alone else os.fork) != 0
        except OSError:
            # Still no room for a process: the hub sees the channel closed, this state lives on.
            parent = True
        if parent:
            for fd in fds:
                os.close(fd)
            return
        if numbers is not None:
            random.setstate(numbers)
        self.alone = True
        self.dead = []
        self.channel.socket.close()
        self.channel = Channel(fds[0])
        os.dup2(fds[1], 1)
        os.dup2(fds[1], 2)
        os.close(fds[1])
        self._move(message["folder"])
        self.channel.send({"op": "born"})

    def _move(self, folder: str) -> None:
        """Give this state its own copy of the work folder, and walls around it."""
        old, self.folder = self.folder, folder
        os.mkdir(folder)
        self.missing = copy_folder(old, folder) if self.has_files else 0
        self.missing += reopen(self.open_files, old, folder)
        _enter(folder, old)
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = folder
        tempfile.tempdir = None  # it remembers the folder of before
        self.walls.enclose(folder)

    def _begin_session(self, message: Message) -> None:
        """Seed every generator and lay out the task's files, read-only."""
        seed = message["seed"]
        random.seed(seed)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(seed % 2**32)
        sympy_random = sys.modules.get("sympy.core.random")
        if sympy_random is not None:
            sympy_random.seed(seed)
        for name, content in message["files"]:
            with create(name, 0o444) as file:
                file.write(base64.b64decode(content))

    def _look_around(self) -> None:
        """What a child will have to be given; found out while nobody waits."""
        self.open_files = self.descriptors.regular_files()
        try:
            self.has_files = bool(os.listdir(self.folder))
        except OSError:
            self.has_files = True

    def _execute(self, message: Message) -> None:
        self.channel.send(self._done(message))
        self._look_around()

    def _done(self, message: Message) -> Message:
        """Run a cell; the answer."""
        if message.get("begin"):
            self._begin_session(message["begin"])
        kernel.adopt_orphans(True)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.cell_files)
        if self.missing:
            note(f"{self.missing} file(s) of the work folder could not be carried over")
        kernel.block_signals(self.mask)
        status = self.prompt.run(message["cell"])
        # A frozen state hears of no signal: what the cell set up for one would change the state.
        self.mask = kernel.block_signals(kernel.EVERY_SIGNAL)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.own_files)
        threads = self._settle()
        kernel.adopt_orphans(False)
        self.alone = not threads
        return {"op": "done", "status": status, "threads": threads}

    def rehearse(self) -> None:
        """Do once what every child will do, so that it need not be done anew in each.

        Python adapts code that runs, fills caches and binds what it calls: each is a page written,
        and a page that a child writes is first copied for it.
        """
        shown, nowhere = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, 1)
        for cell in ["x = [1]\nprint(x)\nx", "1 / 0"] * 8:
            message = json.loads(json.dumps({"cell": cell, "begin": {"seed": 0, "files": []}}))
            json.dumps(self._done(message))
            self._look_around()
        os.dup2(shown, 1)
        for fd in (shown, nowhere):
            os.close(fd)
        linecache.clearcache()
        self.prompt = Prompt(self.limits)
        self.prompt.install()

    def _settle(self) -> bool:
        """Leave no process running, no timer set; whether threads beside the main one are left."""
        threads = os.stat("/proc/self/task").st_nlink > 3
        # Those that a library keeps for itself are nothing the cell should hear of.
        if threads and threading.active_count() > 1:
            note("threads that are still running stop here: they do not go on in the next cell")
        signal.setitimer(signal.ITIMER_REAL, 0)
        if reap(os.WNOHANG):
            self.channel.send({"op": "sweep"})
            received = self.channel.receive()
            reap(0)
            count = received[0]["count"] if received else 0
            note(f"{count} process(es) that the cell left running were ended")
        return threads


def _enter(folder: str, old: str) -> None:
    """Stand in the copy of the folder in which the cell before stood."""
    try:
        here = os.getcwd()
        inside = here[len(old) :] if here.startswith(old + "/") else ""
        os.chdir(folder + inside)
    except OSError:
        os.chdir(folder)


def _buried(pid: int) -> bool:
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def reap(flags: int) -> bool:
    """Take away children that are dead (or, with no flag, wait for all); whether any lives on."""
    try:
        while os.waitpid(-1, flags)[0]:
            pass
    except ChildProcessError:
        return False
    return True


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


def _look(path: str) -> None:
    """Look at a file, with what no cell can replace."""
    kernel.LIBC.access(path.encode(), os.F_OK)


def main(settings: Message) -> None:
    """Be the first process: warmed, limited, never running a cell itself."""
    channel = Channel(os.dup(0))
    kernel.offer_to_the_oom_killer(os.getpid())
    kernel.drop_capabilities()
    found = warm(settings["warm"])
    state = State(channel, settings)
    os.chdir(settings["folder"])
    state.prompt.install()
    state.rehearse()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # sandlock learns of a process by its first look at a file, and only then of its end.
    os.register_at_fork(after_in_child=lambda: _look(os.devnull))
    # Fork hands a child the SIGSTOP of its group, but a SIGCONT only where it is not ignored; one
    # that is blocked is not: else who is forked while the hub holds all still stays stopped.
    kernel.block_signals(kernel.EVERY_SIGNAL)
    filtered = filter_system_calls(state.walls.abi >= 6 and settings["signals"])
    gc.collect()
    gc.freeze()
    versions = {"landlock": state.walls.abi, "filtered": filtered}
    channel.send({"op": "ready", "modules": found, **versions})
    received = channel.receive()
    assert received is not None
    kernel.set_limits(received[0]["limits"])
    kernel.collapse(received[0]["huge"])
    state.serve()
