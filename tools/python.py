"""PythonTool: cells of Python whose names live on, and whose state forks at any moment.

The state is a value: the context of the episode and the cells run so far, each with the digest of
what it printed. A live interpreter is only a cache of it, found by the value and rebuilt by replay
when it is gone.
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
    LONGEST_CELL,
    DockerOptions,
    Limits,
    Pool,
    Reply,
    Sandbox,
    SandboxLost,
    joined,
    open_sandbox,
    stopped,
    too_long,
)
from tools.tool import ToolContext, ToolResult, ToolUnavailable

log = logging.getLogger(__name__)

PythonState = tuple[tuple[int, tuple[tuple[str, str], ...]], tuple[tuple[str, str], ...]]
"""((seed, ((attachment, digest), ...)), ((cell, digest of its output), ...))."""

PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0)
"""Seconds between attempts to open a sandbox that was there before."""


ATTEMPTS = 10
"""Sandboxes tried for one call before the tool counts as unavailable."""


KILLS = 4
"""Times that a cell is run again after a SIGKILL that was none of the sandbox's: by the system for
want of memory, or by the cell itself, which then does it each time."""


FAULTS = 3
"""Times that a state's process may fail by its own doing before the sandbox is tested."""


SOON = 1.0
"""Seconds for a fresh session and a cell; a machine too busy for that blames no state."""


class Ran(NamedTuple):
    """The cell has ended: by itself, or stopped by a limit."""

    state: PythonState
    """The state after the cell; the one before it if the cell was stopped."""
    text: str
    ok: bool


class Killed(NamedTuple):
    """A SIGKILL ended the cell, and it did not come from the sandbox."""


class StateLost(NamedTuple):
    """The process of the state is gone; the next attempt rebuilds it."""

    cause: str
    """gone, broken, fault or lost, as in `Reply.why`."""


class StateBroken(NamedTuple):
    """The state itself is to blame for its faults, so that no attempt can succeed."""


class SandboxDied(NamedTuple):
    """The sandbox is gone or starts no more processes; the next attempt opens another."""

    why: str
    is_tested: bool = False
    """True if it was tested because of a state's faults."""


Outcome = Ran | Killed | StateLost | StateBroken | SandboxDied
"""How one attempt to run a cell ended."""


class RetryBudget(NamedTuple):
    """What one call may still spend on attempts that fail."""

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
    """Runs Python in a sandbox, opened at the first `run`; thread-safe. A fork opens its own."""

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
            docker: the kind of container.
            sandboxes: how many share the sessions; None: one for every eight processors, and
                sixteen where each session needs one of its own.
        """
        if sandbox not in ("auto", "local", "docker"):
            raise ValueError(f"sandbox {sandbox!r}: expected auto, local or docker")
        self._kind = self._taken = sandbox
        self._limits = limits or Limits()
        self._docker = docker or DockerOptions()
        self._sandboxes = sandboxes
        self.forks = 0
        self.replays = 0
        self.mismatches = 0
        self._forget()
        _forget_after_fork(self)

    def __reduce__(self) -> tuple[object, ...]:
        return (PythonTool, (self._kind, self._limits, self._docker, self._sandboxes))

    def _forget(self) -> None:
        """Start without a sandbox; after a fork, the parent keeps the one there was."""
        self._lock = threading.RLock()
        self._sandbox: Sandbox | None = None
        self._closings = 0
        self._live: OrderedDict[PythonState, int] = OrderedDict()

    def initial_state(self, context: ToolContext) -> PythonState:
        """Before any cell. ValueError if two attachments would have one name in the folder."""
        return ((context.seed, with_digests(context.attachments)), ())

    def run(self, state: PythonState, argument: str) -> tuple[PythonState, ToolResult]:
        start = time.perf_counter()
        if len(argument) > LONGEST_CELL:
            following, text, ok = state, too_long(argument), False
        else:
            following, text, ok = self._run_with_retries(state, argument)
        return following, ToolResult(text, ok, time.perf_counter() - start)

    def _run_with_retries(self, state: PythonState, cell: str) -> tuple[PythonState, str, bool]:
        """Run a cell, again after every failure that is not its own.

        Returns:
            The next state, the text for the model, and if the cell went well.

        Raises:
            ToolUnavailable: every attempt failed and the state is not to blame, no sandbox opens,
                or the tool was closed meanwhile.
        """
        closings, budget, why = self._closings, RetryBudget(), ""
        while budget.attempts < ATTEMPTS:
            sandbox = self._reopened() if budget.attempts else self._opened()
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
        if not budget.sandbox_failed and self._healthy(self._opened(), state):
            # Killed from outside so many times in a row? It ends itself, where nobody sees it.
            return state, BROKEN, False
        raise ToolUnavailable(f"Python could not be run, {ATTEMPTS} times in a row: {why}")

    def _attempt(
        self, sandbox: Sandbox, state: PythonState, cell: str, budget: RetryBudget
    ) -> Outcome:
        """Run a cell once. A sandbox that dies meanwhile is an outcome, not an exception."""
        try:
            reply = self._run(sandbox, state, cell)
            if _killed(reply) and budget.kills:
                return Killed()
            if reply.why not in ("gone", "broken", "fault", "lost"):
                return self._result(sandbox, state, cell, reply)
            time.sleep(min(0.1 + 0.1 * budget.attempts, 0.5))
            if reply.why != "lost" and budget.attempts:
                self._drop(sandbox, state)
            outcome = StateLost(reply.why)
            if reply.why == "lost" or budget.after(outcome).faults > 0:
                return outcome
        except SandboxLost as error:
            return SandboxDied(str(error))
        return self._find_culprit(sandbox, state)

    def _find_culprit(self, sandbox: Sandbox, state: PythonState) -> StateBroken | SandboxDied:
        """Test the sandbox once a state has had too many faults."""
        try:
            if self._healthy(sandbox, state):
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
        """Counters of the sandbox, and of replays; opens the sandbox."""
        counters = dict(self._opened().status())
        return {**counters, "replays": self.replays, "mismatches": self.mismatches}

    @property
    def sandbox_name(self) -> str:
        """Which sandbox was taken; opens it."""
        return self._opened().name

    def _opened(self) -> Sandbox:
        with self._lock:
            if self._sandbox is None:
                first = open_sandbox(self._taken, self._limits, self._docker)
                # What another Python replays may answer otherwise: from now on it is this one.
                self._taken = first.name
                self._sandbox = self._pooled(first)
            return self._sandbox

    def _pooled(self, first: Sandbox) -> Sandbox:
        """The sandbox, or several of its kind behind one face."""
        most = self._sandboxes or (16 if first.apart else max(1, (os.cpu_count() or 1) // 8))
        if most == 1 and not first.apart:
            return first
        return Pool(first, partial(open_sandbox, first.name, self._limits, self._docker), most)

    def _reopened(self) -> Sandbox:
        """Open again after a loss; an engine that restarts is given half a minute."""
        for pause in PAUSES:
            try:
                return self._opened()
            except ToolUnavailable as error:
                log.warning("no sandbox yet, trying again in %.0f s: %s", pause, error)
                time.sleep(pause)
        return self._opened()

    def _discard(self, sandbox: Sandbox, why: str) -> None:
        with self._lock:
            if self._sandbox is sandbox:
                log.warning("the sandbox is lost and will be replaced: %s", why)
                self._sandbox = None
                self._live.clear()
        sandbox.close()

    def _drop(self, sandbox: Sandbox, state: PythonState) -> None:
        with self._lock:
            handle = self._live.pop(state, None)
        if handle is not None:
            sandbox.drop([handle])

    def _healthy(self, sandbox: Sandbox, state: PythonState) -> bool:
        """Whether a fresh session is served, and soon: then the fault is the state's own."""
        begun = time.perf_counter()
        reply = sandbox.open(0, [], ["1"])
        soon = time.perf_counter() - begun < SOON
        if reply.state is None:
            return False
        sandbox.drop([reply.state])
        return soon and bool(state[1])

    def _run(self, sandbox: Sandbox, state: PythonState, cell: str) -> Reply:
        """Run from the live state, or from a rebuilt one."""
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
            return self._begin(sandbox, state, [cell])
        rebuilt = self._rebuild(sandbox, state)
        return rebuilt if rebuilt.state is None else sandbox.run(rebuilt.state, [cell])

    def _begin(self, sandbox: Sandbox, fresh: PythonState, cells: list[str]) -> Reply:
        """Run the first cells of a session; only one with files is kept, to lay them out once."""
        (seed, attachments), _none = fresh
        if not attachments and not sandbox.apart:
            return sandbox.open(seed, [], cells, abs(hash(fresh)))
        with self._lock:
            session = self._live.get(fresh) if self._sandbox is sandbox else None
        if session is None:
            reply = sandbox.open(seed, [attached(path, digest) for path, digest in attachments])
            session = self._keep(sandbox, fresh, reply.state)
            if session is None:
                return Reply(None, (), "lost" if reply.why == "lost" else "gone")
        return sandbox.run(session, cells)

    def _rebuild(self, sandbox: Sandbox, state: PythonState) -> Reply:
        """Make a state live again by running its cells in one fresh process."""
        fresh: PythonState = (state[0], ())
        reply = self._begin(sandbox, fresh, [cell for cell, _digest in state[1]])
        crowded = (reply.why or "").startswith(("session_", "all_"))
        if crowded or reply.why in ("gone", "broken", "fault", "lost", "crash"):
            # It ran before: whatever ended it now came from outside. The caller tries again.
            self._drop(sandbox, fresh)
            return Reply(None, (), "lost" if crowded or reply.why == "lost" else "gone")
        with self._lock:
            self.replays += 1
        different = difference(state[1], reply)
        if different is not None:
            self.mismatches += 1
            raise ToolUnavailable(f"the state could not be rebuilt: {different}")
        return Reply(self._keep(sandbox, state, reply.state), (), None)

    def _keep(self, sandbox: Sandbox, state: PythonState, handle: int | None) -> int | None:
        """Remember where a state lives; forget the longest unused."""
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

    def _result(self, sandbox: Sandbox, state: PythonState, cell: str, reply: Reply) -> Ran:
        result = reply.results[-1]
        with self._lock:
            self.forks += 1
        if reply.state is None:
            text = joined(result.text, stopped(result.status, result.code, self._limits))
            return Ran(state, text, False)
        following: PythonState = (state[0], (*state[1], (cell, output_digest(result.text))))
        self._keep(sandbox, following, reply.state)
        return Ran(following, result.text, result.status == "ok")


def _killed(reply: Reply) -> bool:
    """Whether a cell was ended by a SIGKILL of which the sandbox knows nothing."""
    return reply.why == "crash" and reply.results[-1].code == -signal.SIGKILL


def _forget_after_fork(tool: PythonTool) -> None:
    reference = weakref.ref(tool)

    def forget() -> None:
        alive = reference()
        if alive is not None:
            alive._forget()

    if hasattr(os, "register_at_fork"):  # where processes fork
        os.register_at_fork(after_in_child=forget)


def output_digest(text: str) -> str:
    """Of an output without what may differ between two runs: addresses, folders, their names."""
    blank = re.sub(r"0x[0-9a-fA-F]+", "0x", text)
    blank = re.sub(r"\btmp[a-z0-9_]{8}\b", "tmp", blank)
    blank = re.sub(r"(/[^\s/'\"]+)*(/\.~[0-9a-f]+)+", "/work", blank)
    return hashlib.sha256(blank.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def difference(history: Sequence[tuple[str, str]], reply: Reply) -> str | None:
    """In what a replay went otherwise than the (cell, digest of its output) before; or None."""
    ended = len(reply.results) - (reply.state is None)
    for number, (_cell, digest) in enumerate(history):
        which = f"cell {number + 1} of {len(history)}"
        if number >= ended:
            return f"{which} was stopped ({reply.why}), which it was not when it was recorded"
        if output_digest(reply.results[number].text) != digest:
            return (
                f"{which} answered otherwise than when it was recorded (does it read a clock or the"
                " system's randomness?)"
            )
    return None


def with_digests(paths: Sequence[str]) -> tuple[tuple[str, str], ...]:
    """(path, digest) of an episode's attachments.

    Raises:
        ValueError: two would have one name in the work folder.
        OSError: one cannot be read.
    """
    names = [Path(path).name for path in paths]
    if len(set(names)) < len(names):
        raise ValueError(f"two attachments would have one name: {', '.join(names)}")
    return tuple((path, _file_digest(Path(path).read_bytes())) for path in paths)


def attached(path: str, digest: str) -> tuple[str, str]:
    """(name, content in base64) of an attachment; ToolUnavailable if it has changed since."""
    content = Path(path).read_bytes()
    if _file_digest(content) != digest:
        raise ToolUnavailable(f"{path} is not the file that the episode began with")
    return Path(path).name, base64.b64encode(content).decode()


def _file_digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
