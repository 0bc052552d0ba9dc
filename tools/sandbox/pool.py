"""Several sandboxes behind the face of one: sessions are spread over them, lost ones replaced.

Where the states of one sandbox are not kept from each other's files, each session has a sandbox
of its own.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from tools.sandbox.protocol import Reply, Sandbox, SandboxLost
from tools.tool import ToolUnavailable

log = logging.getLogger(__name__)

PLACES = 1 << 20
"""A state of the pool is the sandbox's number plus so many times its number there."""


PATIENCE_S = 90.0
"""Seconds to wait for a sandbox before the pool counts as lost."""


LOST = Reply(None, (), "lost")


@dataclasses.dataclass
class Member:
    """One sandbox of the pool. Mutated under the pool's lock."""

    sandbox: Sandbox
    busy: int = 0
    used: float = 0.0
    """When it was last given something; 0 if it never was."""

    def give(self) -> None:
        self.busy, self.used = self.busy + 1, time.monotonic()


class Pool:
    """Warm sandboxes; thread-safe. Mutated as sandboxes open, are lost and are closed.

    The first is there from the beginning, the others open in the background; when one is lost, the
    rest serve its sessions while another is opened.
    """

    def __init__(self, first: Sandbox, opener: Callable[[], Sandbox], size: int) -> None:
        self.name, self.apart = first.name, first.apart
        self._opener = opener
        self._size = size
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._members = {next(self._numbers): Member(first)}
        self._filling = self._closed = False
        self._failure: Exception | None = None
        with self._changed:
            self._fill()

    def open(
        self,
        seed: int,
        files: Sequence[tuple[str, str]],
        cells: Sequence[str] = (),
        session: int = 0,
    ) -> Reply:
        number = self._choose()
        return self._ask(number, lambda member: member.open(seed, files, cells, session))

    def run(self, state: int, cells: Sequence[str]) -> Reply:
        number, handle = state % PLACES, state // PLACES
        with self._changed:
            if number not in self._members:
                return Reply(None, (), "gone")
            self._members[number].give()
        return self._ask(number, lambda member: member.run(handle, cells))

    def drop(self, states: Sequence[int]) -> None:
        for number, member in self._present().items():
            handles = [state // PLACES for state in states if state % PLACES == number]
            if handles:
                try:
                    member.drop(handles)
                except SandboxLost as error:
                    self._lost(number, error)

    def status(self) -> Mapping[str, int]:
        """Sums over all sandboxes, and how many there are."""
        total: dict[str, int] = {}
        members = self._present()
        for member in members.values():
            for name, count in member.status().items():
                total[name] = total.get(name, 0) + count
        return {**total, "sandboxes": len(members)}

    def close(self) -> None:
        members = self._present()
        with self._changed:
            self._closed, self._members = True, {}
            self._changed.notify_all()
        for member in members.values():
            member.close()

    def _present(self) -> dict[int, Sandbox]:
        with self._changed:
            return {number: member.sandbox for number, member in self._members.items()}

    def _ask(self, number: int, question: Callable[[Sandbox], Reply]) -> Reply:
        """Ask a member that was given the question; the answer in the pool's own numbers."""
        member = self._present().get(number)
        try:
            reply = question(member) if member is not None else LOST
        except SandboxLost as error:
            if self._closed:
                raise
            self._lost(number, error)
            reply = LOST
        finally:
            with self._changed:
                if number in self._members:
                    self._members[number].busy -= 1
                self._changed.notify_all()
        return reply._replace(state=None if reply.state is None else reply.state * PLACES + number)

    def _choose(self) -> int:
        """The sandbox of a new session: the least busy, or an untouched one."""
        deadline = time.monotonic() + PATIENCE_S
        with self._changed:
            while not self._closed:
                fit = [
                    number
                    for number, member in self._members.items()
                    if not (self.apart and member.used)
                ]
                if fit:
                    chosen = min(fit, key=lambda one: (self._members[one].busy, self._used(one)))
                    self._members[chosen].give()
                    self._fill()
                    return chosen
                self._fill()
                if not self._changed.wait(deadline - time.monotonic()) or self._failure:
                    raise SandboxLost(f"no sandbox could be opened: {self._failure}")
        raise SandboxLost("closed")

    def _used(self, number: int) -> float:
        return self._members[number].used

    def _lost(self, number: int, error: SandboxLost) -> None:
        with self._changed:
            member = self._members.pop(number, None)
            self._fill()
        if member is not None:
            log.warning("one of the sandboxes is lost and will be replaced: %s", error)
            member.sandbox.close()

    def _fill(self) -> None:
        """Open what is missing, in the background; call with the lock held."""
        if not self._filling and not self._closed and self._wanting():
            self._filling, self._failure = True, None
            threading.Thread(target=self._work, daemon=True).start()

    def _wanting(self) -> bool:
        """Whether one more should open: too few, or none untouched for a session of its own."""
        if len(self._members) < self._size and not self.apart:
            return True
        untouched = any(not member.used for member in self._members.values())
        full = len(self._members) > self._size and self._idle() is None
        return self.apart and not untouched and not full

    def _idle(self) -> int | None:
        """The longest unused sandbox that served a session and runs nothing."""
        found = [n for n, member in self._members.items() if member.used and not member.busy]
        return min(found, key=self._used, default=None)

    def _work(self) -> None:
        """Open one sandbox; where sessions are apart, the longest unused one makes room."""
        try:
            made = self._opener()
        except (ToolUnavailable, SandboxLost) as error:
            with self._changed:
                self._filling, self._failure = False, error
                self._changed.notify_all()
            return
        superfluous = None if not self._closed else made
        with self._changed:
            self._filling = False
            if superfluous is None:
                idle = self._idle()
                if len(self._members) > self._size and idle is not None:
                    superfluous = self._members.pop(idle).sandbox
                self._members[next(self._numbers)] = Member(made)
                self._fill()
            self._changed.notify_all()
        if superfluous is not None:
            superfluous.close()
