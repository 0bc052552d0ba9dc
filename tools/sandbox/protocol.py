"""Where model-written code runs: open a session, run a cell from a state, drop states.

Two sandboxes speak one protocol: `local` (Landlock and seccomp through sandlock) and `docker`.
`open_sandbox` starts one and proves by a cell that it works. What happens inside is in
`tools.repl`, whose files are sent there as source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a cell may use before it is stopped, and what one sandbox may hold; bytes, seconds."""

    cpu: float = 10.0
    """CPU time of a cell, its subprocesses included."""
    wall: float = 100.0
    """Time on the clock of a cell; the backstop behind `cpu`."""
    start: float = 15.0
    """Time for a state to fork; one that does not is given up."""
    answer: float = 30.0
    """Time on top of the cells' own for the hub to answer; one that does not is given up."""
    memory: int = 1 << 30
    """Memory of a cell's processes together; also what one may add to the bare interpreter."""
    processes: int = 32
    """Processes of a cell at one time."""
    threads: int = 256
    """Threads of all its processes at one time."""
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
    session_cpu: float = 600.0
    """CPU time of all cells that led to a state, and of the one that follows."""
    session_wall: float = 3000.0
    """Likewise time on the clock."""
    session_output: int = 256 << 20
    """Likewise output, shown or not."""
    session_memory: int = 4 << 30
    """Memory of all live states and running cells of one session, shared pages counted once."""
    session_disk: int = 1 << 30
    """Size of all their work folders."""
    session_processes: int = 512
    """All their processes, and the threads of each; a live state is one."""
    live_states: int = 512
    """States kept alive; the longest unused are forgotten and rebuilt by replay when needed."""
    spares: int = 32
    """States forked in advance while nothing runs, so that their next cell need not wait."""
    live_memory: int = 2 << 30
    """Memory of all live states, shared pages counted once."""
    all_processes: int = 1536
    """Processes and their threads of the whole sandbox, frozen states included."""


@dataclasses.dataclass(frozen=True)
class DockerOptions:
    """How a docker sandbox is made."""

    image: str = "appo-sandbox:local"
    """Any image with python3 (3.9 or later); nothing is pulled."""
    runtime: str | None = None
    """Runtime of the engine, such as gVisor's `runsc`; None is the engine's default."""
    memory: int = 4 << 30
    """Bytes of the whole container, its work folder included."""
    cpus: float | None = None
    """Processors of the whole container; None is all that the engine has."""
    user: str = "65534:65534"
    """User and group inside the container; never root."""


class CellResult(NamedTuple):
    """How one cell ended."""

    status: str
    """ok, error (it raised), or the limit that stopped it, or crash."""
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
    """Why there is no state: gone, deep, fault, lost (its sandbox), or what stopped the cell."""


class SandboxLost(RuntimeError):
    """The sandbox died or does not answer; its states are gone and can be rebuilt in a new one."""


class Sandbox(Protocol):
    """A running sandbox. Thread-safe; belongs to the process that opened it."""

    name: str
    apart: bool
    """Whether states are not kept from each other's files, so that each session needs its own."""

    def open(
        self,
        seed: int,
        files: Sequence[tuple[str, str]],
        cells: Sequence[str] = (),
        session: int = 0,
    ) -> Reply:
        """A fresh session, and `cells` run in it: the state after them.

        Args:
            seed: of every generator.
            files: (name, content in base64), laid in its work folder.
            cells: those that an episode begins with; none leaves a state to run them from.
            session: its number, where several share the limits of one session; 0: its own.
        """
        ...

    def run(self, state: int, cells: Sequence[str]) -> Reply:
        """Fork `state` and run `cells` in the child, which becomes the next state."""
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
