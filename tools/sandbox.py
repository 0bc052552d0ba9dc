"""Where model-written code runs: open a session, run a cell from a state and get the next state, drop states.

Two sandboxes speak one protocol: `local` (Landlock and seccomp through sandlock) and `docker`. `open_sandbox` starts
one and proves by a cell that it works. What happens inside is in the `repl_*` files, which are sent there as source.
"""

import dataclasses
import importlib.resources
import json
import logging
import struct
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

from tools.tool import ToolUnavailable

log = logging.getLogger(__name__)

INSIDE = ("repl_kernel", "repl_cell", "repl_state")
"""Modules of the processes that run cells."""
HUB = ("repl_kernel", "repl_usage", "repl_link", "repl_jobs")
"""Modules of the hub, before its launcher and `repl_hub` itself."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a cell may use before it is stopped, and what one sandbox may hold. Sizes in bytes, times in seconds."""

    cpu: float = 10.0
    """CPU time of a cell, its subprocesses included."""
    wall: float = 100.0
    """Time on the clock of a cell; the backstop behind `cpu`."""
    memory: int = 1 << 30
    """Memory of a cell's processes together, and what one process may add to the bare interpreter."""
    processes: int = 32
    """Processes of a cell at one time."""
    output: int = 16 << 20
    """Output of a cell before it is stopped."""
    output_shown: int = 8000
    """Output of a cell that is kept: half from the beginning, half from the end."""
    disk: int = 128 << 20
    """Size of a state's work folder, deleted files that are still open included."""
    files: int = 4096
    """Entries of a state's work folder."""
    file_size: int = 64 << 20
    """Size of one file."""
    open_files: int = 256
    """Descriptors of one process."""
    live_states: int = 512
    """States kept alive; the longest unused are forgotten and rebuilt by replay when needed."""
    live_memory: int = 2 << 30
    """Memory of all live states, shared pages counted once."""
    all_processes: int = 4096
    """Processes of the whole sandbox."""


class CellResult(NamedTuple):
    """How one cell ended."""

    status: str
    """ok, error (it raised), or what stopped it: cpu, wall, memory, processes, output, disk, crash."""
    text: str
    seconds: float
    code: int | None
    """Exit code of a crash, or minus its signal; None where unknown."""


class Reply(NamedTuple):
    """What a sandbox answers."""

    state: int | None
    """The state after the last cell; None if there is none."""
    results: tuple[CellResult, ...]
    why: str | None
    """Why there is no state: gone, deep, fault, or what stopped the last cell."""


class SandboxLost(RuntimeError):
    """The sandbox died or does not answer; its states are gone and can be rebuilt in a new one."""


class Sandbox(Protocol):
    """A running sandbox. Thread-safe; belongs to the process that opened it."""

    name: str

    def open(self, seed: int, files: Sequence[tuple[str, str]]) -> Reply:
        """A fresh session with `files` (name, content in base64) in its work folder."""
        ...

    def run(self, state: int, cells: Sequence[str]) -> Reply:
        """Fork `state` and run `cells` in the child, which becomes the next state; `state` itself is untouched."""
        ...

    def drop(self, states: Sequence[int]) -> None:
        """Forget states."""
        ...

    def status(self) -> Mapping[str, int]:
        """Counters of the hub."""
        ...

    def close(self) -> None:
        """End every process of the sandbox and delete its files."""
        ...


class Transport(Protocol):
    """A byte stream to a hub, and the means to end it."""

    name: str

    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    def kill(self) -> str:
        """End every process behind the stream, however it fares; what it last complained of."""
        ...


class HubSandbox:
    """A sandbox behind a stream. Mutable: the requests that wait for an answer."""

    def __init__(self, transport: Transport, boot: Mapping[str, object], limits: Limits) -> None:
        self.name = transport.name
        self.limits = limits
        self.ready: dict[str, object] = {}
        self._transport = transport
        self._lock = threading.Lock()
        self._waiting: dict[int, list[object]] = {}
        self._wakers: dict[int, threading.Event] = {}
        self._next = 1
        self._lost: str | None = None
        self._wakers[0] = threading.Event()
        self._post(boot)
        self._reader = threading.Thread(target=self._read, daemon=True, name="sandbox-reader")
        self._reader.start()
        started = self._wait(0, 60.0)
        self.pid = int(str(started["pid"]))
        self.ready = dict(started)

    def open(self, seed: int, files: Sequence[tuple[str, str]]) -> Reply:
        return self._cells({"op": "open", "seed": seed, "files": list(files)}, 1)

    def run(self, state: int, cells: Sequence[str]) -> Reply:
        return self._cells({"op": "run", "state": state, "cells": list(cells)}, len(cells))

    def drop(self, states: Sequence[int]) -> None:
        self._post({"op": "drop", "states": list(states)})

    def status(self) -> Mapping[str, int]:
        counters = self._ask({"op": "status"}, 30.0)["counters"]
        assert isinstance(counters, dict)
        return counters

    def close(self) -> None:
        with self._lock:
            self._lost = self._lost or "closed"
        self._transport.kill()
        if threading.current_thread() is not self._reader:
            self._reader.join(10)

    def _cells(self, message: dict[str, object], count: int) -> Reply:
        answer = self._ask(message, 30.0 + self.limits.wall * count)
        results = answer["results"]
        assert isinstance(results, list)
        state, why = answer["state"], answer["why"]
        return Reply(
            state if isinstance(state, int) else None,
            tuple(
                CellResult(str(one["status"]), str(one["text"]), one["seconds"], one["code"])
                for one in results
            ),
            None if why is None else str(why),
        )

    def _ask(self, message: dict[str, object], seconds: float) -> Mapping[str, object]:
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._wakers[number] = threading.Event()
        self._post({**message, "id": number})
        return self._wait(number, seconds)

    def _post(self, message: Mapping[str, object]) -> None:
        body = json.dumps(message).encode()
        with self._lock:
            if self._lost:
                raise SandboxLost(self._lost)
            try:
                self._transport.send(struct.pack("!I", len(body)) + body)
            except OSError as error:
                raise SandboxLost(f"writing to the {self.name} sandbox: {error}") from None

    def _wait(self, number: int, seconds: float) -> Mapping[str, object]:
        answered = self._wakers[number].wait(seconds)
        with self._lock:
            del self._wakers[number]
            found = self._waiting.pop(number, None)
            lost = self._lost
        if found is None:
            if not answered:
                lost = f"the {self.name} sandbox did not answer within {seconds:.0f} s"
                self._lose(lost)
            raise SandboxLost(lost or "lost")
        answer = found[0]
        assert isinstance(answer, dict)
        return answer

    def _read(self) -> None:
        data = bytearray()
        try:
            while part := self._transport.receive():
                data += part
                while len(data) >= 4:
                    size = struct.unpack_from("!I", data)[0]
                    if len(data) < 4 + size:
                        break
                    self._deliver(json.loads(bytes(data[4 : 4 + size])))
                    del data[: 4 + size]
        except OSError:
            pass
        self._lose(f"the {self.name} sandbox ended")

    def _deliver(self, answer: dict[str, object]) -> None:
        number = answer["id"]
        assert isinstance(number, int)
        with self._lock:
            waker = self._wakers.get(number)
            if waker is not None:
                self._waiting[number] = [answer]
                waker.set()

    def _lose(self, why: str) -> None:
        with self._lock:
            if self._lost:
                why = self._lost
            else:
                self._lost = why
                said = self._transport.kill()
                self._lost = f"{why}: {said}" if said else why
            for waker in self._wakers.values():
                waker.set()


def sources(names: Sequence[str]) -> list[tuple[str, str]]:
    """(name, source) of modules beside this one."""
    here = importlib.resources.files("tools")
    return [(name, (here / f"{name}.py").read_text(encoding="utf-8")) for name in names]


def boot_code() -> str:
    """What the interpreter in the sandbox is started with."""
    return sources(["repl_boot"])[0][1]


def boot_message(
    launcher: str, settings: Mapping[str, object], state: Mapping[str, object], limits: Limits
) -> dict[str, object]:
    """The first message to a hub: its own source, and what it hands on to the sandbox's first process."""
    return {
        "modules": sources([*HUB, launcher, "repl_hub"]),
        "entry": "repl_hub",
        "settings": {
            **settings,
            "launcher": launcher,
            "boot": boot_code(),
            "modules": sources(INSIDE),
            "limits": dataclasses.asdict(limits),
            "state": {
                **state,
                "limits": [
                    limits.memory,
                    limits.file_size,
                    limits.open_files,
                    int(limits.cpu * 20 + 60),
                ],
            },
        },
    }


def environment(folder: str) -> dict[str, str]:
    """Environment of the processes that run cells: nothing of the learner's."""
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "HOME": folder,
        "TMPDIR": folder,
        "LANG": "C.UTF-8",
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONMALLOC": "malloc",
        "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
        "MPLBACKEND": "Agg",
        **{f"{name}_NUM_THREADS": "1" for name in ("OPENBLAS", "OMP", "MKL", "NUMEXPR")},
    }


WARM = [
    "math",
    "cmath",
    "decimal",
    "fractions",
    "statistics",
    "itertools",
    "functools",
    "collections",
    "re",
    "json",
    "datetime",
    "heapq",
    "bisect",
    "string",
    "copy",
    "tempfile",
    "shutil",
    "subprocess",
    "numpy",
    "sympy",
]
"""Modules that the first process imports if they are there, so that no cell waits for them."""


def open_sandbox(kind: str, limits: Limits, options: Mapping[str, object]) -> Sandbox:
    """Start a sandbox and run a cell in it.

    Args:
        kind: local, docker, or auto: local if it works here, else docker.
        limits: of cells and of the sandbox.
        options: keyword arguments of the docker sandbox.

    Raises:
        ValueError: `kind` is none of these.
        ToolUnavailable: none could be had; says what is missing and what to install.
    """
    from tools.docker_sandbox import open_docker
    from tools.local_sandbox import open_local

    openers: dict[str, Callable[[], HubSandbox]] = {
        "local": lambda: open_local(limits),
        "docker": lambda: open_docker(limits, **options),
    }
    if kind not in ("auto", *openers):
        raise ValueError(f"sandbox {kind!r}: expected auto, local or docker")
    failures = []
    for name in openers if kind == "auto" else [kind]:
        try:
            sandbox = openers[name]()
            _prove(sandbox)
        except (SandboxLost, ToolUnavailable) as error:
            failures.append(f"{name}: {error}")
            continue
        log.info("python runs in the %s sandbox", sandbox.name)
        return sandbox
    raise ToolUnavailable("no sandbox for Python code can be had here.\n" + "\n".join(failures))


def _prove(sandbox: HubSandbox) -> None:
    """Run a cell: the only proof that a sandbox works."""
    session = sandbox.open(0, [])
    if session.state is not None:
        reply = sandbox.run(session.state, ["6 * 7"])
        if reply.results and reply.results[0].text == "42\n":
            sandbox.drop([state for state in (session.state, reply.state) if state is not None])
            return
        session = reply
    sandbox.close()
    said = session.results[-1].text if session.results else ""
    raise SandboxLost(f"a first cell did not run ({session.why}) {said}")
