"""The Sandbox protocol: open a session, run cells from a state, drop states.

Two sandboxes implement it: `local` (Landlock and seccomp through sandlock) and `docker`. The
programs inside them are in `tools.repl`, whose files are sent there as source.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a cell, of a session and of a whole sandbox, in bytes and seconds."""

    cpu: float = 10.0
    """CPU time of a cell, its subprocesses included."""
    wall: float = 100.0
    """Wall-clock time of a cell; the backstop behind `cpu`."""
    start: float = 15.0
    """Time for a state to fork; then the fork counts as failed."""
    answer: float = 30.0
    """Time for the hub to answer, on top of the cells' own; then the sandbox counts as lost."""
    memory: int = 1 << 30
    """Memory of all processes of a cell; each may add as much to the bare interpreter's."""
    processes: int = 32
    """Processes of a cell at one time."""
    threads: int = 256
    """Threads of all processes of a cell at one time."""
    output: int = 16 << 20
    """Output of a cell before it is stopped."""
    output_shown: int = 8000
    """Output of a cell that is shown: half from the beginning, half from the end."""
    disk: int = 128 << 20
    """Size of a state's work folder, including deleted files that are still open."""
    files: int = 4096
    """Entries of a state's work folder."""
    file_size: int = 64 << 20
    """Size of one file."""
    open_files: int = 256
    """Open files of one process."""
    session_cpu: float = 600.0
    """CPU time of all cells that led to a state and of the one that runs now."""
    session_wall: float = 3000.0
    """Wall-clock time of the same cells."""
    session_output: int = 256 << 20
    """Output of the same cells, whether shown or not."""
    session_memory: int = 4 << 30
    """Memory of all live states and running cells of a session, shared pages counted once."""
    session_disk: int = 1 << 30
    """Size of the work folders of all live states and running cells of a session."""
    session_processes: int = 512
    """Processes and threads of all live states and running cells of a session."""
    live_states: int = 512
    """States kept alive; beyond that the longest unused are evicted and rebuilt by replay."""
    spares: int = 32
    """States forked in advance while nothing runs, so that the next cell need not wait."""
    live_memory: int = 2 << 30
    """Memory of all live states, shared pages counted once."""
    all_processes: int = 1536
    """Processes and threads of the whole sandbox, including frozen states."""


@dataclasses.dataclass(frozen=True)
class DockerOptions:
    """Options of a docker sandbox."""

    image: str = "appo-sandbox:local"
    """Image of the container: any with python3 (3.9 or later). Nothing is pulled."""
    runtime: str | None = None
    """Container runtime, such as gVisor's `runsc`; None: the engine's default."""
    memory: int = 4 << 30
    """Memory of the whole container in bytes, including its work folder."""
    cpus: float | None = None
    """Processors of the whole container; None: all that the engine has."""
    user: str = "65534:65534"
    """User and group inside the container; never root."""


class CellResult(NamedTuple):
    """The result of one cell."""

    status: str
    """ok, error (it raised), crash, or the limit that stopped it."""
    text: str
    seconds: float
    code: int | None
    """Exit code of a crash, or minus its signal; None if unknown."""


class SandboxReply(NamedTuple):
    """A sandbox's answer to a request."""

    state: int | None
    """The state after the last cell; None if there is none."""
    results: tuple[CellResult, ...]
    why: str | None
    """Reason that there is no state: what stopped the cell, crash, or one of these.

    gone: the state has ended. broken: it has ended by its own doing. fault: its fork has failed.
    deep: its chain of forks is as long as the kernel allows. lost: its sandbox has died.
    """


class SandboxLost(RuntimeError):
    """The sandbox died or does not answer. Its states can be rebuilt in a new one."""


class Sandbox(Protocol):
    """A running sandbox. Thread-safe; belongs to the process that opened it."""

    name: str
    single_session: bool
    """True if states are not kept out of each other's files: each session needs its own sandbox."""

    def open(
        self,
        seed: int,
        files: Sequence[tuple[str, str]],
        cells: Sequence[str] = (),
        session: int = 0,
    ) -> SandboxReply:
        """Open a session and run `cells` in it; the reply has the state after them.

        Args:
            seed: for every random generator.
            files: (name, content in base64) of files for the work folder.
            cells: the first cells of an episode; with none, the state is that before any cell.
            session: number of a session whose limits this one shares; 0: it has its own.
        """
        ...

    def run(self, state: int, cells: Sequence[str]) -> SandboxReply:
        """Fork `state` and run `cells` in the child, which becomes the next state."""
        ...

    def drop(self, states: Sequence[int]) -> None:
        """Forget states and end their processes."""
        ...

    def status(self) -> Mapping[str, int]:
        """Return the hub's counters."""
        ...

    def close(self) -> None:
        """End every process of the sandbox and delete its files."""
        ...
