"""The process of one state, frozen until it is forked to run a cell.

The first process imports what cells are likely to need and forks sessions; a session forks its
first state, and so on. Each process has a channel of its own to the hub. The hub trusts nothing
that runs here: a cell controls the process it runs in.
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
from tools.repl.cell import (
    Descriptors,
    Interpreter,
    copy_folder,
    create_file,
    reopen_files,
    write_note,
)
from tools.repl.filter import filter_system_calls

HubMessage = dict[str, Any]
"""A JSON message between the hub and a state; `link` has the hub's end and is not sent here."""


class Channel:
    """The state's end of the stream to the hub: JSON messages, each preceded by its length."""

    def __init__(self, fd: int) -> None:
        self.socket = socket.socket(fileno=fd)

    def send(self, message: HubMessage) -> None:
        body = json.dumps(message).encode()
        data = struct.pack("!I", len(body)) + body
        while data:
            data = data[os.write(self.socket.fileno(), data) :]

    def receive(self) -> tuple[HubMessage, list[int]] | None:
        """Return the next message and the descriptors that came with it; None at the end."""
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
    """This process: its channel, folder and names. Mutated by every cell and in every child."""

    def __init__(self, channel: Channel, settings: HubMessage) -> None:
        self.channel = channel
        self.folder = settings["folder"]
        self.limits = settings["limits"]
        self.interpreter = Interpreter(self.limits)
        abi = kernel.query_landlock_abi()
        self.landlock = kernel.LandlockLayer(settings["roots"], settings["devices"], abi)
        self.open_files: list[int] = []
        self.missing_files = 0
        self.killed_children: list[int] = []
        self.has_files = False
        self.is_single_threaded = True
        self.signal_mask = kernel.build_signal_set(signal.SIGCONT)
        files = settings["limits"]["open_files"]
        self.cell_file_limits, self.own_file_limits = (files, files + 32), (files + 32, files + 32)
        self.descriptors = Descriptors(files + 32)

    def serve(self) -> None:
        """Answer the hub until it closes the channel; a forked child continues with its own."""
        while True:
            received = self.channel.receive()
            if received is None:
                os._exit(0)
            message, fds = received
            operation = message["op"]
            if operation == "fork":
                self._fork(message, fds)
            elif operation == "session":
                self._start_session(message)
                self.channel.send({"op": "done", "status": "ok"})
                self._record_files()
            elif operation == "exec":
                self.channel.send(self._run_cell(message))
                self._record_files()
            elif operation == "reap":
                self._reap_killed(message["pid"])

    def _reap_killed(self, pid: int) -> None:
        """Reap the children that the hub has killed; it may still inspect the others."""
        self.killed_children.append(pid)
        self.killed_children = [pid for pid in self.killed_children if not _reap(pid)]

    def _fork(self, message: HubMessage, fds: list[int]) -> None:
        """Fork: the parent stays as it is, the child takes the channel that came."""
        # `os.fork` seeds `random` anew in the child, the C library's fork does not.
        generator = None if self.is_single_threaded else random.getstate()
        fork = kernel.fork if self.is_single_threaded else os.fork
        try:
            is_parent = kernel.fork_with_retries(fork) != 0
        except OSError:
            # Still no room for a process: the hub sees the channel close, this state lives on.
            is_parent = True
        if is_parent:
            for fd in fds:
                os.close(fd)
            return
        if generator is not None:
            random.setstate(generator)
        self.is_single_threaded = True
        self.killed_children = []
        self.channel.socket.close()
        self.channel = Channel(fds[0])
        os.dup2(fds[1], 1)
        os.dup2(fds[1], 2)
        os.close(fds[1])
        self._move_to(message["folder"])
        self.channel.send({"op": "born"})

    def _move_to(self, folder: str) -> None:
        """Copy the work folder for this state and confine the process to the copy."""
        old, self.folder = self.folder, folder
        os.mkdir(folder)
        self.missing_files = copy_folder(old, folder) if self.has_files else 0
        self.missing_files += reopen_files(self.open_files, old, folder)
        _enter_folder(folder, old)
        for name in ("HOME", "TMPDIR"):
            os.environ[name] = folder
        tempfile.tempdir = None  # it caches the parent's folder
        self.landlock.confine(folder)

    def _start_session(self, message: HubMessage) -> None:
        """Seed every generator and write the task's files, read-only."""
        seed = message["seed"]
        random.seed(seed)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(seed % 2**32)
        sympy_random = sys.modules.get("sympy.core.random")
        if sympy_random is not None:
            sympy_random.seed(seed)
        for name, content in message["files"]:
            with create_file(name, 0o444) as file:
                file.write(base64.b64decode(content))

    def _record_files(self) -> None:
        """Record which files a child must copy or reopen, while no request waits for it."""
        self.open_files = self.descriptors.list_regular_files()
        try:
            self.has_files = bool(os.listdir(self.folder))
        except OSError:
            self.has_files = True

    def _run_cell(self, message: HubMessage) -> HubMessage:
        """Run a cell and return the answer."""
        if message.get("begin"):
            self._start_session(message["begin"])
        kernel.set_subreaper(True)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.cell_file_limits)
        if self.missing_files:
            write_note(f"{self.missing_files} file(s) of the work folder could not be carried over")
        kernel.block_signals(self.signal_mask)
        status = self.interpreter.run(message["cell"])
        # A frozen state receives no signal: a handler of the cell's would change the state.
        self.signal_mask = kernel.block_signals(kernel.ALL_SIGNALS)
        resource.setrlimit(resource.RLIMIT_NOFILE, self.own_file_limits)
        threads = self._clean_up()
        kernel.set_subreaper(False)
        self.is_single_threaded = not threads
        return {"op": "done", "status": status, "threads": threads}

    def warm_up(self) -> None:
        """Run a few cells once, so that children need not repeat what the first run costs.

        Python specialises code that runs, fills caches and binds names. Each of these writes to a
        page of memory, and a page that a child writes to must first be copied for it.
        """
        stdout, null = os.dup(1), os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        for cell in ["x = [1]\nprint(x)\nx", "1 / 0"] * 8:
            message = json.loads(json.dumps({"cell": cell, "begin": {"seed": 0, "files": []}}))
            json.dumps(self._run_cell(message))
            self._record_files()
        os.dup2(stdout, 1)
        for fd in (stdout, null):
            os.close(fd)
        linecache.clearcache()
        self.interpreter = Interpreter(self.limits)
        self.interpreter.install()

    def _clean_up(self) -> bool:
        """End the cell's processes and timers; return True if it has left threads running."""
        # The folder has two links of its own and one for each thread.
        threads = os.stat("/proc/self/task").st_nlink > 3
        # Threads that a library keeps for itself are not worth a note to the model.
        if threads and threading.active_count() > 1:
            write_note(
                "threads that are still running stop here: they do not go on in the next cell"
            )
        signal.setitimer(signal.ITIMER_REAL, 0)
        if reap_children(os.WNOHANG):
            self.channel.send({"op": "sweep"})
            received = self.channel.receive()
            reap_children(0)
            count = received[0]["count"] if received else 0
            write_note(f"{count} process(es) that the cell left running were ended")
        return threads


def _enter_folder(folder: str, old: str) -> None:
    """Enter the copy of the current folder if it lies in `old`, else the top of the copy."""
    try:
        current = os.getcwd()
        inside = current[len(old) :] if current.startswith(old + "/") else ""
        os.chdir(folder + inside)
    except OSError:
        os.chdir(folder)


def _reap(pid: int) -> bool:
    """Reap a child if it is dead; return True if it is gone."""
    try:
        return os.waitpid(pid, os.WNOHANG)[0] == pid
    except ChildProcessError:
        return True


def reap_children(flags: int) -> bool:
    """Reap dead children (all of them, waiting, if `flags` is 0); return True if any lives on."""
    try:
        while os.waitpid(-1, flags)[0]:
            pass
    except ChildProcessError:
        return False
    return True


def import_modules(modules: list[str]) -> list[str]:
    """Import the modules that are installed and return their names; use sympy once to warm it."""
    imported = []
    for name in modules:
        try:
            __import__(name)
            imported.append(name)
        except ImportError:
            continue
    if "sympy" in imported:
        import sympy

        x = sympy.Symbol("x")
        sympy.solve(x**2 - 2, x)
        sympy.integrate(sympy.sin(x) * x, x)
    return imported


def _access(path: str) -> None:
    """Call access(2) by the C library, which no cell can replace."""
    kernel.LIBC.access(path.encode(), os.F_OK)


def main(settings: HubMessage) -> None:
    """Be the first process: warm up, give up rights, and fork sessions; run no cell of a model."""
    channel = Channel(os.dup(0))
    kernel.set_oom_score(os.getpid())
    kernel.drop_capabilities()
    modules = import_modules(settings["warm"])
    state = State(channel, settings)
    os.chdir(settings["folder"])
    state.interpreter.install()
    state.warm_up()
    for name in [name for name in sys.modules if name.partition(".")[0] == "tools"]:
        del sys.modules[name]
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    # sandlock learns of a process by its first access to a file, and only then of its end.
    os.register_at_fork(after_in_child=lambda: _access(os.devnull))
    # A process forked while the hub pauses its group inherits the SIGSTOP, but the SIGCONT only if
    # that signal is not ignored. A blocked signal is not ignored: without the block, the child
    # would stay stopped for good.
    kernel.block_signals(kernel.ALL_SIGNALS)
    filtered = filter_system_calls(state.landlock.abi >= 6 and settings["signals"])
    gc.collect()
    gc.freeze()
    versions = {"landlock": state.landlock.abi, "filtered": filtered}
    channel.send({"op": "ready", "modules": modules, **versions})
    received = channel.receive()
    assert received is not None
    kernel.set_limits(received[0]["limits"])
    kernel.request_huge_pages(received[0]["huge"])
    state.serve()
