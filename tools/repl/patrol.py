"""The hub's rounds: evicts states, ends strays and what only pretends to be frozen.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import collections
import contextlib
import os
import signal
import time
from collections.abc import Iterable, Set
from typing import NamedTuple

from tools.repl import usage
from tools.repl.jobs import Job, Live, memory_of
from tools.repl.link import Ended, Message

PATIENCE = 0.5
"""Seconds of CPU that a frozen state may use, beside what its forks cost."""


FORK_COST = 0.2
"""Seconds of CPU allowed for one fork of a frozen state: copying page tables and files."""


PER_ROUND = 10
"""States looked at in one round: a look costs a tenth of a millisecond."""


GIVE_UP = 3.0
"""Seconds of chasing strays after which the whole sandbox is ended and rebuilt."""

States = dict[int, Live]


class Patrol:
    """Looks after states that run nothing. Mutated by every look."""

    def __init__(self, limits: dict[str, float], first: int, own_disk: str) -> None:
        self.limits = limits
        self.first = first
        self.strays = 0
        self.chasing_since = 0.0
        self.queue: list[Live] = []
        self.dying: dict[int, float] = {}
        self.swept: dict[int, float] = {}
        self.blamed: collections.OrderedDict[int, None] = collections.OrderedDict()
        self.own_disk = own_disk
        self.look_at_disk = 0.0

    def look(self, now: float, states: States, running: States) -> list[Live]:
        """One round; the states to forget: evicted ones are `calm`."""
        self.sweep(states, running)
        unborn = {live.parent.handle for live in running.values() if live.parent and not live.pid}
        self.dying = {pid: until for pid, until in self.dying.items() if until > now}
        self.swept = {pid: until for pid, until in self.swept.items() if until > now}
        guilty = self._inspect(now, states, running)
        return guilty + [live for live in self._too_many(states) if live.handle not in unborn]

    def _inspect(self, now: float, states: States, running: States) -> list[Live]:
        """Look at some of the states: what they hold, and whether they keep still."""
        if not self.queue:
            self.queue = list(states.values())
        batch, self.queue = self.queue[:PER_ROUND], self.queue[PER_ROUND:]
        waiting = {live.parent.handle for live in running.values() if live.parent and not live.pid}
        known = _pids(states) | _pids(running) | self.dying.keys()
        guilty = []
        for live in batch:
            if live.handle not in states:
                continue
            if not live.measured or now - live.measured > 5 > now - live.used:
                measure(live, now)
            restless = usage.own_cpu(live.pid) > live.cpu_allowed + live.forks * FORK_COST
            if not restless and live.handle not in waiting:
                restless = any(
                    child not in known and usage.fields(child)[:1] not in ([], ["Z"])
                    for child in usage.children(live.pid)
                )
            if restless:
                live.calm = False
                self.blamed[live.handle] = None
                guilty.append(live)
        return guilty

    def blame(self, live: Live) -> None:
        """A frozen state ended: by itself, unless somebody outside killed it."""
        if usage.exit_code(live.pid) not in (None, -signal.SIGKILL):
            self.blamed[live.handle] = None
        while len(self.blamed) > 10_000:
            self.blamed.popitem(last=False)

    def how_it_ended(self, live: Live, job: Job) -> tuple[str, int | None]:
        """Why a running cell's process ended, and its exit code."""
        if job.current is None and live.parent is not None and live.parent.dying():
            return "gone", None
        if live.pid in self.swept:
            # Its parent was killed before it had said its name: the hub took it for a stranger.
            return "gone", None
        code = usage.exit_code(live.pid) if live.pid else None
        return ("crash" if job.current is not None else "fault"), code

    def why_gone(self, handle: int) -> str:
        """Whether a state that is not there ended by its own doing."""
        return "broken" if handle in self.blamed else "gone"

    def _too_many(self, states: States) -> list[Live]:
        """The longest unused states beyond the bounds on number and memory."""
        if self._crowded():
            by_age = sorted(states.values(), key=lambda live: live.used)
            return by_age[: len(by_age) // 4 + 1]
        total = sum(live.held["memory"] for live in states.values())
        count = len(states)
        if total > self.limits["live_memory"]:
            total -= refresh(states.values())
        if total <= self.limits["live_memory"] and count <= self.limits["live_states"]:
            return []
        chosen = []
        for live in sorted(states.values(), key=lambda live: live.used):
            if total <= self.limits["live_memory"] and count <= self.limits["live_states"]:
                break
            total -= live.held["memory"]
            count -= 1
            chosen.append(live)
        return chosen

    def _crowded(self) -> bool:
        """Whether the disk that is the sandbox's own is nearly full."""
        if not self.own_disk or time.monotonic() < self.look_at_disk:
            return False
        self.look_at_disk = time.monotonic() + 0.5
        about = os.statvfs(self.own_disk)
        return about.f_bavail * 5 < about.f_blocks or about.f_favail * 5 < about.f_files

    def counts(self, states: States) -> dict[str, int]:
        """What is held, for the status."""
        held = sum(live.held["memory"] for live in states.values())
        return {"states": len(states), "strays": self.strays, "bytes": held}

    def part(self, doomed: list[Live], running: States) -> tuple[list[Live], list[Live]]:
        """Those of the doomed that can go, and those that still fork a child, to be known first."""
        waits = {id(live.parent) for live in running.values() if not live.pid}
        go = [live for live in doomed if id(live) not in waits]
        return go, [live for live in doomed if id(live) in waits]

    def killed(self, pid: int) -> None:
        """A process that takes a moment to die is no stranger meanwhile."""
        self.dying[pid] = time.monotonic() + 10

    def sweep(self, states: States, running: States) -> None:
        """Kill and reap what came to the hub and is no state; Ended if it cannot be caught."""
        known = _pids(states) | _pids(running) | {self.first}
        for _round in range(20):
            alive = len(self._alive(self._strays(known)))
            # At once: in the time of one round more, a fork bomb fills the memory of a container.
            with usage.still(self.first if alive else 0):
                self._end_strays(known)
            if not alive:
                self.chasing_since = 0.0
                return
            self.strays += alive
        self.chasing_since = self.chasing_since or time.monotonic()
        if time.monotonic() - self.chasing_since > GIVE_UP:
            raise Ended("processes that cannot be caught")

    def _strays(self, known: Set[int]) -> list[int]:
        return [pid for pid in usage.children(os.getpid()) if pid not in known]

    def _alive(self, found: list[int]) -> list[int]:
        # What was killed already only takes its time to die, on a busy machine for seconds.
        new = [pid for pid in found if pid not in self.dying]
        return [pid for pid in new if usage.fields(pid)[:1] not in ([], ["Z"])]

    def _end_strays(self, known: Set[int]) -> None:
        """Kill and reap what hangs on the hub and is not `known`."""
        for pid in self._strays(known):
            self.dying.setdefault(pid, time.monotonic() + 10)
            self.swept[pid] = self.dying[pid]
            usage.end_family(pid, itself=True, keep=known)
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def _pids(states: States) -> set[int]:
    return {live.pid for live in states.values()}


FRESH = 2.0
"""Seconds for which a measure of memory is good enough to evict by."""


AT_ONCE = 20
"""States measured in one round: a measure costs up to a millisecond."""


KINDS = ("memory", "disk", "processes")


class Excess(NamedTuple):
    """What must go so that no session holds more than it may."""

    states: list[Live]
    cell: Live | None
    reason: str


def steps(request: Message) -> list[Message]:
    """What a request asks for, one after the other; the first cell of a session begins it."""
    cells: list[Message] = [{"op": "exec", "cell": cell} for cell in request["cells"]]
    if request["op"] == "open":
        begin = {"seed": request["seed"], "files": request["files"]}
        cells = [cells[0] | {"begin": begin}, *cells[1:]] if cells else [{"op": "session", **begin}]
    return cells


def measure(live: Live, now: float) -> None:
    """What a frozen state holds; its files do not change any more."""
    if not live.measured:
        live.held["disk"] = usage.folder_size(live.folder.path, 100_000)[0]
    live.held["memory"], live.measured = usage.proportional(live.pid), now


def refresh(states: Iterable[Live]) -> int:
    """Measure again what was measured longest ago; how many bytes less it is.

    Each process more that shares a page makes the others' part of it smaller, so that an old
    measure says too much. No more than a few at a time: the rest are taken as nothing until then.
    """
    now, gain = time.monotonic(), 0
    old = sorted((live for live in states if now - live.measured > FRESH), key=_measured)
    for live in old[:AT_ONCE]:
        before = live.held["memory"]
        measure(live, now)
        gain += before - live.held["memory"]
    return gain + sum(live.held["memory"] for live in old[AT_ONCE:])


def _measured(live: Live) -> float:
    return live.measured


def excess(states: States, running: States, limits: dict[str, float]) -> Excess:
    """The first session that holds too much: its longest unused states, or its largest cell.

    States make way first, because they can be rebuilt; a cell only if the cells alone are too much.
    """
    sessions: dict[int, list[Live]] = {}
    for live in [*states.values(), *running.values()]:
        sessions.setdefault(live.session, []).append(live)
    for members in sessions.values():
        for kind in KINDS:
            most = limits["session_" + kind]
            if sum(live.held[kind] for live in members) > most:
                found = _make_way(members, kind, most, "session_" + kind)
                if found is not None:
                    return found
    everyone = [live for members in sessions.values() for live in members]
    if sum(live.held["processes"] for live in everyone) > limits["all_processes"]:
        found = _make_way(everyone, "processes", limits["all_processes"], "all_processes")
        return found or Excess([], None, "")
    return Excess([], None, "")


def _make_way(members: list[Live], kind: str, most: float, reason: str) -> Excess | None:
    cells = [live for live in members if live.job is not None and live.pid]
    if kind == "memory":
        # A look at a cell counts shared pages in full; now it is worth counting them once.
        refresh([live for live in members if live.job is None])
        for live in cells:
            live.held["memory"] = memory_of(live.pid)
    unborn = {live.parent.handle for live in members if live.parent and not live.pid}
    total = sum(live.held[kind] for live in members)
    chosen = []
    for live in sorted(members, key=lambda live: live.used):
        if total <= most:
            break
        if live.job is None and live.held[kind] and live.handle not in unborn:
            total -= live.held[kind]
            chosen.append(live)
    if chosen or total <= most:
        return Excess(chosen, None, "") if chosen else None
    largest = max(cells, key=lambda live: live.held[kind], default=None)
    return Excess([], largest, reason)
