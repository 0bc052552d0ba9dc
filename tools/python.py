"""PythonTool runs cells of Python in a session whose state can be forked at any point.

The state is a value: the context of the episode and the cells run so far, each with a digest of
its output. A live interpreter is only a cache, looked up by that value and rebuilt by replay when
it is gone.
"""

from __future__ import annotations

import base64
import hashlib
import logging
import os
import re
import signal
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tools.sandbox import (
    BROKEN,
    MAX_CELL_CHARACTERS,
    DockerOptions,
    Limits,
    Pool,
    Sandbox,
    SandboxLost,
    SandboxReply,
    append_note,
    explain_stop,
    explain_too_long,
    open_sandbox,
)
from tools.tool import ToolContext, ToolResult, ToolUnavailable

log = logging.getLogger(__name__)

PythonState = tuple[tuple[int, tuple[tuple[str, str], ...]], tuple[tuple[str, str], ...]]
"""((seed, ((attachment, digest), ...)), ((cell, digest of its output), ...))."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between attempts to open another sandbox after a loss."""

ATTEMPTS = 10
"""Attempts to run a cell before the tool counts as unavailable."""

KILLS = 4
"""Times that a cell is run again after a SIGKILL that did not come from the sandbox.

The system sends one when it runs out of memory. A cell may also kill itself, and then does so each
time.
"""

FAULTS = 3
"""Times that a state's process may fail by its own doing before the sandbox is tested."""

MAX_TEST_SECONDS = 1.0
"""Time for a fresh session and a cell in the test; a machine that is slower blames no state."""


class Ran(NamedTuple):
    """The cell has ended by itself or at a limit."""

    state: PythonState
    """The state after the cell; the one before it if the cell was stopped."""
    text: str
    ok: bool


class Killed(NamedTuple):
    """A SIGKILL ended the cell, and it did not come from the sandbox."""


class StateLost(NamedTuple):
    """The process of the state is gone; the next attempt rebuilds it."""

    cause: str
    """gone, broken, fault or lost, as in `SandboxReply.why`."""


class StateBroken(NamedTuple):
    """The state itself is to blame for its faults, so that no attempt can succeed."""


class SandboxDied(NamedTuple):
    """The sandbox is gone or starts no more processes; the next attempt opens another."""

    why: str
    is_tested: bool = False
    """True if this was found out by a test after a state's last fault."""


Outcome = Ran | Killed | StateLost | StateBroken | SandboxDied
"""Outcome of one attempt to run a cell."""


class RetryBudget(NamedTuple):
    """Retries that are left to one call, by the kind of failure."""

    attempts: int = 0
    """Attempts made, of at most `ATTEMPTS`."""
    kills: int = KILLS
    """Kills after which the cell is run again."""
    faults: int = FAULTS
    """Faults of the state's own that are left; when none is, the sandbox is tested."""
    sandbox_failed: bool = False
    """True if a sandbox was lost, so that the state is not to blame for the failures."""

    def after(self, outcome: Outcome) -> RetryBudget:
        """Return the budget of the next attempt."""
        left = self._replace(attempts=self.attempts + 1)
        match outcome:
            case Killed():
                return left._replace(kills=self.kills - 1)
            case StateLost("broken" | "fault"):
                return left._replace(faults=self.faults - 1)
            case SandboxDied(is_tested=True):
                return left._replace(sandbox_failed=True, faults=0)
            case SandboxDied() | StateLost("lost"):
                return left._replace(sandbox_failed=True)
        return left


class PythonTool:
    """Runs Python in a sandbox, opened at the first `run`; thread-safe.

    A forked process opens a sandbox of its own. Mutated by every call: live states, counters.
    """

    name = "python"
    description = (
        "Runs Python; variables and files stay for the next call, the last line's value is shown."
    )

    def __init__(
        self,
        sandbox: str = "auto",
        limits: Limits | None = None,
        docker: DockerOptions | None = None,
        sandboxes: int | None = None,
    ) -> None:
        """Choose where cells run.

        Args:
            sandbox: auto, local or docker.
            limits: of cells, sessions and sandboxes.
            docker: options of the container.
            sandboxes: number of sandboxes that share the sessions. None: one for every eight
                processors, or sixteen if each session needs its own.
        """
        if sandbox not in ("auto", "local", "docker"):
            raise ValueError(f"sandbox {sandbox!r}: expected auto, local or docker")
        self._kind = self._chosen = sandbox
        self._limits = limits or Limits()
        self._docker = docker or DockerOptions()
        self._sandboxes = sandboxes
        self.forks = 0
        self.replays = 0
        self.mismatches = 0
        self._reset()
        _reset_after_fork(self)

    def __reduce__(self) -> tuple[object, ...]:
        return (PythonTool, (self._kind, self._limits, self._docker, self._sandboxes))

    def _reset(self) -> None:
        """Start without a sandbox; after a fork, the existing one belongs to the parent."""
        self._lock = threading.RLock()
        self._sandbox: Sandbox | None = None
        self._closings = 0
        self._live: OrderedDict[PythonState, int] = OrderedDict()

    def initial_state(self, context: ToolContext) -> PythonState:
        """Return the state before any cell; ValueError if two attachments have the same name."""
        return ((context.seed, digest_attachments(context.attachments)), ())

    def run(self, state: PythonState, argument: str) -> tuple[PythonState, ToolResult]:
        start = time.perf_counter()
        if len(argument) > MAX_CELL_CHARACTERS:
            following, text, ok = state, explain_too_long(argument), False
        else:
            following, text, ok = self._run_with_retries(state, argument)
        return following, ToolResult(text, ok, time.perf_counter() - start)

    def _run_with_retries(self, state: PythonState, cell: str) -> tuple[PythonState, str, bool]:
        """Run a cell, retrying after failures that are not its own.

        Returns:
            The next state, the text for the model, and True if the cell succeeded.

        Raises:
            ToolUnavailable: every attempt failed and the state is not to blame, no sandbox opens,
                or the tool was closed during the call.
        """
        closings, budget, why = self._closings, RetryBudget(), ""
        while budget.attempts < ATTEMPTS:
            sandbox = self._reopen_sandbox() if budget.attempts else self._get_sandbox()
            outcome = self._attempt(sandbox, state, cell, budget)
            match outcome:
                case Ran():
                    return outcome
                case StateBroken():
                    return state, BROKEN, False
                case StateLost(cause):
                    why = f"the process of the state is gone ({cause})"
                case SandboxDied(why):
                    self._discard(sandbox, why)
                    if self._closings != closings:
                        raise ToolUnavailable("the tool was closed during the call")
                case Killed():
                    pass
            budget = budget.after(outcome)
        if not budget.sandbox_failed and self._is_healthy(self._get_sandbox(), state):
            # Killed from outside at every attempt? It must end itself where we cannot see it.
            return state, BROKEN, False
        raise ToolUnavailable(f"Python could not be run, {ATTEMPTS} times in a row: {why}")

    def _attempt(
        self, sandbox: Sandbox, state: PythonState, cell: str, budget: RetryBudget
    ) -> Outcome:
        """Run a cell once. The death of a sandbox is an outcome, not an exception."""
        try:
            reply = self._run(sandbox, state, cell)
            if _is_killed(reply) and budget.kills:
                return Killed()
            if reply.why not in ("gone", "broken", "fault", "lost"):
                return self._record_result(sandbox, state, cell, reply)
            time.sleep(min(0.1 + 0.1 * budget.attempts, 0.5))
            if reply.why != "lost" and budget.attempts:
                self._drop_state(sandbox, state)
            outcome = StateLost(reply.why)
            if reply.why == "lost" or budget.after(outcome).faults > 0:
                return outcome
        except SandboxLost as error:
            return SandboxDied(str(error))
        return self._find_culprit(sandbox, state)

    def _find_culprit(self, sandbox: Sandbox, state: PythonState) -> StateBroken | SandboxDied:
        """Test the sandbox after a state's last fault, to see which of them is broken."""
        try:
            if self._is_healthy(sandbox, state):
                return StateBroken()
            return SandboxDied("it starts no processes any more", is_tested=True)
        except SandboxLost as error:
            return SandboxDied(str(error), is_tested=True)

    def close(self) -> None:
        with self._lock:
            sandbox = self._sandbox
            self._closings += 1
            self._sandbox = None
            self._live.clear()
        if sandbox is not None:
            sandbox.close()

    def status(self) -> Mapping[str, int]:
        """Return counters of the sandbox and of replays; opens the sandbox."""
        counters = dict(self._get_sandbox().status())
        return {**counters, "replays": self.replays, "mismatches": self.mismatches}

    @property
    def sandbox_name(self) -> str:
        """The kind of sandbox in use, local or docker; opens it."""
        return self._get_sandbox().name

    def _get_sandbox(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                first = open_sandbox(self._chosen, self._limits, self._docker)
                # Another kind's Python may give other outputs in a replay: keep to this kind.
                self._chosen = first.name
                self._sandbox = self._build_pool(first)
            return self._sandbox

    def _build_pool(self, first: Sandbox) -> Sandbox:
        """Return a pool of sandboxes of one kind, or `first` if it is to be the only one."""
        default_size = 16 if first.single_session else max(1, (os.cpu_count() or 1) // 8)
        size = self._sandboxes or default_size
        if size == 1 and not first.single_session:
            return first
        return Pool(first, partial(open_sandbox, first.name, self._limits, self._docker), size)

    def _reopen_sandbox(self) -> Sandbox:
        """Open again after a loss, waiting half a minute for an engine that restarts."""
        for pause in PAUSES:
            try:
                return self._get_sandbox()
            except ToolUnavailable as error:
                log.warning("no sandbox yet, trying again in %.0f s: %s", pause, error)
                time.sleep(pause)
        return self._get_sandbox()

    def _discard(self, sandbox: Sandbox, why: str) -> None:
        with self._lock:
            if self._sandbox is sandbox:
                log.warning("the sandbox is lost and will be replaced: %s", why)
                self._sandbox = None
                self._live.clear()
        sandbox.close()

    def _drop_state(self, sandbox: Sandbox, state: PythonState) -> None:
        with self._lock:
            handle = self._live.pop(state, None)
        if handle is not None:
            sandbox.drop([handle])

    def _is_healthy(self, sandbox: Sandbox, state: PythonState) -> bool:
        """Return True if a fresh session works in time, so that the fault is the state's own.

        A state without cells has done nothing, so it is never to blame.
        """
        start = time.perf_counter()
        reply = sandbox.open(0, [], ["1"])
        in_time = time.perf_counter() - start < MAX_TEST_SECONDS
        if reply.state is None:
            return False
        sandbox.drop([reply.state])
        return in_time and bool(state[1])

    def _run(self, sandbox: Sandbox, state: PythonState, cell: str) -> SandboxReply:
        """Run a cell from the live state, or from a rebuilt one."""
        with self._lock:
            handle = self._live.get(state) if self._sandbox is sandbox else None
            if handle is not None:
                self._live.move_to_end(state)
        if handle is not None:
            reply = sandbox.run(handle, [cell])
            if reply.why not in ("gone", "broken", "deep"):
                return reply
            with self._lock:
                self._live.pop(state, None)
            if reply.why == "deep":
                sandbox.drop([handle])
        if not state[1]:
            return self._start_session(sandbox, state, [cell])
        rebuilt = self._rebuild(sandbox, state)
        return rebuilt if rebuilt.state is None else sandbox.run(rebuilt.state, [cell])

    def _start_session(
        self, sandbox: Sandbox, fresh: PythonState, cells: list[str]
    ) -> SandboxReply:
        """Run the first cells of a session.

        A session with attachments stays alive before its first cell, so that they are sent once.
        """
        (seed, attachments), _none = fresh
        if not attachments and not sandbox.single_session:
            return sandbox.open(seed, [], cells, abs(hash(fresh)))
        with self._lock:
            session = self._live.get(fresh) if self._sandbox is sandbox else None
        if session is None:
            reply = sandbox.open(
                seed, [read_attachment(path, digest) for path, digest in attachments]
            )
            session = self._store_handle(sandbox, fresh, reply.state)
            if session is None:
                return SandboxReply(None, (), "lost" if reply.why == "lost" else "gone")
        return sandbox.run(session, cells)

    def _rebuild(self, sandbox: Sandbox, state: PythonState) -> SandboxReply:
        """Make a state live again by running its cells in one fresh process."""
        fresh: PythonState = (state[0], ())
        reply = self._start_session(sandbox, fresh, [cell for cell, _digest in state[1]])
        crowded = (reply.why or "").startswith(("session_", "all_"))
        if crowded or reply.why in ("gone", "broken", "fault", "lost", "crash"):
            # The cells ran before: whatever ended them now came from outside. The caller retries.
            self._drop_state(sandbox, fresh)
            return SandboxReply(None, (), "lost" if crowded or reply.why == "lost" else "gone")
        with self._lock:
            self.replays += 1
        mismatch = find_mismatch(state[1], reply)
        if mismatch is not None:
            self.mismatches += 1
            raise ToolUnavailable(f"the state could not be rebuilt: {mismatch}")
        return SandboxReply(self._store_handle(sandbox, state, reply.state), (), None)

    def _store_handle(self, sandbox: Sandbox, state: PythonState, handle: int | None) -> int | None:
        """Store the handle of a live state; drop the longest unused ones."""
        if handle is None:
            return None
        with self._lock:
            if self._sandbox is not sandbox:
                return handle
            old = self._live.pop(state, None)
            self._live[state] = handle
            dropped = [] if old is None or old == handle else [old]
            while len(self._live) > self._limits.live_states:
                dropped.append(self._live.popitem(last=False)[1])
        if dropped:
            sandbox.drop(dropped)
        return handle

    def _record_result(
        self, sandbox: Sandbox, state: PythonState, cell: str, reply: SandboxReply
    ) -> Ran:
        result = reply.results[-1]
        with self._lock:
            self.forks += 1
        if reply.state is None:
            text = append_note(result.text, explain_stop(result.status, result.code, self._limits))
            return Ran(state, text, False)
        following: PythonState = (state[0], (*state[1], (cell, digest_output(result.text))))
        self._store_handle(sandbox, following, reply.state)
        return Ran(following, result.text, result.status == "ok")


def _is_killed(reply: SandboxReply) -> bool:
    """Return True if a SIGKILL ended the cell that did not come from the sandbox."""
    return reply.why == "crash" and reply.results[-1].code == -signal.SIGKILL


def _reset_after_fork(tool: PythonTool) -> None:
    # A weak reference: the handler is never unregistered and must not keep the tool alive.
    reference = weakref.ref(tool)

    def reset() -> None:
        live_tool = reference()
        if live_tool is not None:
            live_tool._reset()

    if hasattr(os, "register_at_fork"):  # Windows has none
        os.register_at_fork(after_in_child=reset)


def digest_output(text: str) -> str:
    """Return the digest of an output without addresses and folders, which differ between runs."""
    blank = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
    blank = re.sub(r"\btmp[a-z0-9_]{8}\b", "tmp", blank)
    blank = re.sub(r"(/[^\s/'\"]+)*(/\.~[0-9a-f]+)+", "/work", blank)
    return hashlib.sha256(blank.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def find_mismatch(history: Sequence[tuple[str, str]], reply: SandboxReply) -> str | None:
    """Return how a replay differs from the recorded (cell, digest of its output); None if equal."""
    ended = len(reply.results) - (reply.state is None)
    for number, (_cell, digest) in enumerate(history):
        which = f"cell {number + 1} of {len(history)}"
        if number >= ended:
            return f"{which} was stopped ({reply.why}), unlike when it was recorded"
        if digest_output(reply.results[number].text) != digest:
            return (
                f"{which} gave another output than when it was recorded (does it read a clock or"
                " the system's randomness?)"
            )
    return None


def digest_attachments(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """Return (path, digest) of an episode's attachments.

    Raises:
        ValueError: two attachments would have one name in the work folder.
        OSError: an attachment cannot be read.
    """
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"two attachments would have one name: {', '.join(names)}")
    return tuple((path, _digest_file(Path(path).read_bytes())) for path in paths)


def read_attachment(path: str, digest: str) -> tuple[str, str]:
    """Return (name, content in base64) of an attachment; ToolUnavailable if it has changed."""
    content = Path(path).read_bytes()
    if _digest_file(content) != digest:
        raise ToolUnavailable(f"{path} is not the file that the episode began with")
    return Path(path).name, base64.b64encode(content).decode()


def _digest_file(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
