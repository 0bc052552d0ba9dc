"""Several sandboxes used as one: sessions are spread over them, lost ones are replaced.

If the states of a sandbox are not kept out of each other's files, each session has a sandbox of
its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from tools.sandbox.protocol import Sandbox, SandboxLost, SandboxReply
from tools.tool import ToolUnavailable

log = logging.getLogger(__name__)

STRIDE = 1 << 20
"""A state of the pool is its member's number plus STRIDE times its number in that member."""

MAX_WAIT = 90.0
"""Seconds to wait for a sandbox before the pool counts as lost."""

LOST = SandboxReply(None, (), "lost")


@dataclasses.dataclass
class Member:
    """One sandbox of the pool. Mutated under the pool's lock."""

    sandbox: Sandbox
    running: int = 0
    last_used: float = 0.0
    """Time of its last request; 0 if it has had none."""

    def start_request(self) -> None:
        self.running, self.last_used = self.running + 1, time.monotonic()


class Pool:
    """Warm sandboxes; thread-safe. Mutated as sandboxes open, are lost and are closed.

    The first one is given, the others open in the background. When one is lost, the rest serve its
    sessions until a new one has opened.
    """

    def __init__(self, first: Sandbox, opener: Callable[[], Sandbox], size: int) -> None:
        self.name, self.single_session = first.name, first.single_session
        self._opener = opener
        self._size = size
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._members = {next(self._numbers): Member(first)}
        self._opening = self._closed = False
        self._failure: Exception | None = None
        with self._changed:
            self._open_missing()

    def open(
        self,
        seed: int,
        files: Sequence[tuple[str, str]],
        cells: Sequence[str] = (),
        session: int = 0,
    ) -> SandboxReply:
        number = self._choose()
        return self._forward(number, lambda sandbox: sandbox.open(seed, files, cells, session))

    def run(self, state: int, cells: Sequence[str]) -> SandboxReply:
        number, handle = state % STRIDE, state // STRIDE
        with self._changed:
            if number not in self._members:
                return SandboxReply(None, (), "gone")
            self._members[number].start_request()
        return self._forward(number, lambda sandbox: sandbox.run(handle, cells))

    def drop(self, states: Sequence[int]) -> None:
        for number, sandbox in self._list_sandboxes().items():
            handles = [state // STRIDE for state in states if state % STRIDE == number]
            if handles:
                try:
                    sandbox.drop(handles)
                except SandboxLost as error:
                    self._remove_lost(number, error)

    def status(self) -> Mapping[str, int]:
        """Return the sums of all sandboxes' counters, and how many sandboxes there are."""
        total: dict[str, int] = {}
        sandboxes = self._list_sandboxes()
        for sandbox in sandboxes.values():
            for name, count in sandbox.status().items():
                total[name] = total.get(name, 0) + count
        return {**total, "sandboxes": len(sandboxes)}

    def close(self) -> None:
        sandboxes = self._list_sandboxes()
        with self._changed:
            self._closed, self._members = True, {}
            self._changed.notify_all()
        for sandbox in sandboxes.values():
            sandbox.close()

    def _list_sandboxes(self) -> dict[int, Sandbox]:
        with self._changed:
            return {number: member.sandbox for number, member in self._members.items()}

    def _forward(self, number: int, request: Callable[[Sandbox], SandboxReply]) -> SandboxReply:
        """Send a request to a member and translate the reply's state to the pool's numbers."""
        sandbox = self._list_sandboxes().get(number)
        try:
            reply = request(sandbox) if sandbox is not None else LOST
        except SandboxLost as error:
            if self._closed:
                raise
            self._remove_lost(number, error)
            reply = LOST
        finally:
            with self._changed:
                if number in self._members:
                    self._members[number].running -= 1
                self._changed.notify_all()
        return reply._replace(state=None if reply.state is None else reply.state * STRIDE + number)

    def _choose(self) -> int:
        """Choose the sandbox of a new session: the least busy, or an unused one."""
        deadline = time.monotonic() + MAX_WAIT
        with self._changed:
            while not self._closed:
                available = [
                    (member.running, member.last_used, number)
                    for number, member in self._members.items()
                    if not (self.single_session and member.last_used)
                ]
                if available:
                    chosen = min(available)[-1]
                    self._members[chosen].start_request()
                    self._open_missing()
                    return chosen
                self._open_missing()
                if not self._changed.wait(deadline - time.monotonic()) or self._failure:
                    raise SandboxLost(f"no sandbox could be opened: {self._failure}")
        raise SandboxLost("closed")

    def _remove_lost(self, number: int, error: SandboxLost) -> None:
        with self._changed:
            member = self._members.pop(number, None)
            self._open_missing()
        if member is not None:
            log.warning("one of the sandboxes is lost and will be replaced: %s", error)
            member.sandbox.close()

    def _open_missing(self) -> None:
        """Open a sandbox in the background if one is missing; call with the lock held."""
        if not self._opening and not self._closed and self._needs_member():
            self._opening, self._failure = True, None
            threading.Thread(target=self._open_member, daemon=True).start()

    def _needs_member(self) -> bool:
        """Return True if one more should open: too few, or none unused for a session of its own."""
        if len(self._members) < self._size and not self.single_session:
            return True
        has_unused = any(not member.last_used for member in self._members.values())
        full = len(self._members) > self._size and self._find_idle() is None
        return self.single_session and not has_unused and not full

    def _find_idle(self) -> int | None:
        """Return the longest unused sandbox that served a session and runs nothing."""
        idle = [
            number
            for number, member in self._members.items()
            if member.last_used and not member.running
        ]
        return min(idle, key=lambda number: self._members[number].last_used, default=None)

    def _open_member(self) -> None:
        """Open one sandbox; if each has one session, the longest unused one makes room."""
        try:
            sandbox = self._opener()
        except (ToolUnavailable, SandboxLost) as error:
            with self._changed:
                self._opening, self._failure = False, error
                self._changed.notify_all()
            return
        surplus = None if not self._closed else sandbox
        with self._changed:
            self._opening = False
            if surplus is None:
                idle = self._find_idle()
                if len(self._members) > self._size and idle is not None:
                    surplus = self._members.pop(idle).sandbox
                self._members[next(self._numbers)] = Member(sandbox)
                self._open_missing()
            self._changed.notify_all()
        if surplus is not None:
            surplus.close()
