"""The hub's rounds: evict states, kill strays and states that only pretend to be frozen.

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
from tools.repl.jobs import Job, LiveState, measure_memory
from tools.repl.link import HubMessage, HubStopped

IDLE_CPU = 0.5
"""Seconds of CPU that a frozen state may use besides its forks."""

FORK_CPU = 0.2
"""Seconds of CPU allowed for one fork of a frozen state: copying page tables and files."""

STATES_PER_ROUND = 10
"""States inspected in one round: each takes a tenth of a millisecond."""

MAX_CHASE = 3.0
"""Seconds of chasing strays after which the whole sandbox is ended and rebuilt."""

DISK_CHECK_INTERVAL = 0.5
"""Seconds between two looks at the sandbox's own disk."""

MEASURE_LIFETIME = 2.0
"""Seconds for which a measurement of memory is good enough to evict by."""

MAX_MEASURED = 20
"""States measured in one round: each takes up to a millisecond."""

RESOURCES = ("memory", "disk", "processes")
"""Resources limited for each session, by the limits' names after `session_`."""

LiveStates = dict[int, LiveState]
"""Live states by their handles."""


class Excess(NamedTuple):
    """Idle states, or one running cell, that must go so that no session exceeds its limits."""

    states: list[LiveState]
    cell: LiveState | None
    reason: str


class Patrol:
    """Watches states that run nothing. Mutated by every round."""

    def __init__(self, limits: dict[str, float], first_pid: int, own_disk: str) -> None:
        self.limits = limits
        self.first_pid = first_pid
        self.strays = 0
        self.chasing_since = 0.0
        self.queue: list[LiveState] = []
        self.dying: dict[int, float] = {}
        """Killed processes, and the time until which they may still be around."""
        self.swept: dict[int, float] = {}
        """Those of them that were killed as strays."""
        self.blamed: collections.OrderedDict[int, None] = collections.OrderedDict()
        """Handles of states that ended by their own doing."""
        self.own_disk = own_disk
        self.next_disk_check = 0.0

    def run_round(self, now: float, states: LiveStates, running: LiveStates) -> list[LiveState]:
        """Do one round; return the states to evict, and those to kill because they `misbehaved`."""
        self.sweep(states, running)
        forking = _list_forking(running.values())
        self.dying = {pid: until for pid, until in self.dying.items() if until > now}
        self.swept = {pid: until for pid, until in self.swept.items() if until > now}
        restless = self._inspect(now, states, running)
        return restless + [
            state for state in self._choose_surplus(states) if state.handle not in forking
        ]

    def _inspect(self, now: float, states: LiveStates, running: LiveStates) -> list[LiveState]:
        """Measure some of the states; return those that do anything but wait and fork."""
        if not self.queue:
            self.queue = list(states.values())
        batch, self.queue = self.queue[:STATES_PER_ROUND], self.queue[STATES_PER_ROUND:]
        forking = _list_forking(running.values())
        expected = _list_pids(states) | _list_pids(running) | self.dying.keys()
        restless = []
        for state in batch:
            if state.handle not in states:
                continue
            if not state.measured_at or now - state.measured_at > 5 > now - state.last_used:
                measure_state(state, now)
            allowance = state.cpu_allowance + state.forks * FORK_CPU
            is_restless = usage.read_cpu(state.pid) > allowance
            if not is_restless and state.handle not in forking:
                is_restless = any(
                    child not in expected and _is_alive(child)
                    for child in usage.list_children(state.pid)
                )
            if is_restless:
                state.misbehaved = True
                self.blamed[state.handle] = None
                restless.append(state)
        return restless

    def blame(self, state: LiveState) -> None:
        """Remember that a frozen state ended by itself, unless it was killed from outside."""
        if usage.read_exit_code(state.pid) not in (None, -signal.SIGKILL):
            self.blamed[state.handle] = None
        while len(self.blamed) > 10_000:
            self.blamed.popitem(last=False)

    def explain_end(self, state: LiveState, job: Job) -> tuple[str, int | None]:
        """Return why a running cell's process ended, and its exit code."""
        if job.current is None and state.parent is not None and state.parent.is_dying():
            return "gone", None
        if state.pid in self.swept:
            # Its parent was killed before it announced itself: the hub took it for a stray.
            return "gone", None
        code = usage.read_exit_code(state.pid) if state.pid else None
        return ("crash" if job.current is not None else "fault"), code

    def explain_absence(self, handle: int) -> str:
        """Return "broken" if a missing state ended by its own doing, else "gone"."""
        return "broken" if handle in self.blamed else "gone"

    def _choose_surplus(self, states: LiveStates) -> list[LiveState]:
        """Return the longest unused states beyond the limits of number and memory."""
        if self._is_disk_nearly_full():
            by_age = sorted(states.values(), key=lambda state: state.last_used)
            return by_age[: len(by_age) // 4 + 1]
        total = sum(state.footprint["memory"] for state in states.values())
        count = len(states)
        if total > self.limits["live_memory"]:
            total -= remeasure(states.values())
        if total <= self.limits["live_memory"] and count <= self.limits["live_states"]:
            return []
        surplus = []
        for state in sorted(states.values(), key=lambda state: state.last_used):
            if total <= self.limits["live_memory"] and count <= self.limits["live_states"]:
                break
            total -= state.footprint["memory"]
            count -= 1
            surplus.append(state)
        return surplus

    def _is_disk_nearly_full(self) -> bool:
        """Return True if less than a fifth of the sandbox's own disk is free."""
        if not self.own_disk or time.monotonic() < self.next_disk_check:
            return False
        self.next_disk_check = time.monotonic() + DISK_CHECK_INTERVAL
        disk = os.statvfs(self.own_disk)
        return disk.f_bavail * 5 < disk.f_blocks or disk.f_favail * 5 < disk.f_files

    def count(self, states: LiveStates) -> dict[str, int]:
        """Return counters for the status."""
        memory = sum(state.footprint["memory"] for state in states.values())
        return {"states": len(states), "strays": self.strays, "bytes": memory}

    def split_doomed(
        self, doomed: list[LiveState], running: LiveStates
    ) -> tuple[list[LiveState], list[LiveState]]:
        """Return the states that can go, and those that must wait for a child to be identified."""
        forking = {id(state.parent) for state in running.values() if not state.pid}
        ready = [state for state in doomed if id(state) not in forking]
        return ready, [state for state in doomed if id(state) in forking]

    def expect_end(self, pid: int) -> None:
        """Take no killed process for a stray while it dies, which takes a moment."""
        self.dying[pid] = time.monotonic() + 10

    def sweep(self, states: LiveStates, running: LiveStates) -> None:
        """Kill and reap children of the hub that are no states; HubStopped if they escape."""
        tracked = _list_pids(states) | _list_pids(running) | {self.first_pid}
        for _round in range(20):
            alive = len(self._list_new(self._list_strays(tracked)))
            # Pause all right away: in one more round a fork bomb fills a container's memory.
            with usage.pause_group(self.first_pid if alive else 0):
                self._kill_strays(tracked)
            if not alive:
                self.chasing_since = 0.0
                return
            self.strays += alive
        self.chasing_since = self.chasing_since or time.monotonic()
        if time.monotonic() - self.chasing_since > MAX_CHASE:
            raise HubStopped("processes that cannot be caught")

    def _list_strays(self, tracked: Set[int]) -> list[int]:
        return [pid for pid in usage.list_children(os.getpid()) if pid not in tracked]

    def _list_new(self, strays: list[int]) -> list[int]:
        # A process that was killed already may take seconds to die on a busy machine.
        return [pid for pid in strays if pid not in self.dying and _is_alive(pid)]

    def _kill_strays(self, tracked: Set[int]) -> None:
        """Kill and reap the children of the hub that are not `tracked`."""
        for pid in self._list_strays(tracked):
            self.dying.setdefault(pid, time.monotonic() + 10)
            self.swept[pid] = self.dying[pid]
            usage.kill_tree(pid, itself=True, keep=tracked)
            with contextlib.suppress(OSError):
                os.waitpid(pid, os.WNOHANG)


def _list_pids(states: LiveStates) -> set[int]:
    return {state.pid for state in states.values()}


def _list_forking(states: Iterable[LiveState]) -> set[int]:
    """Return the handles of states whose child has not announced itself yet."""
    return {state.parent.handle for state in states if state.parent and not state.pid}


def _is_alive(pid: int) -> bool:
    """Return True if a process exists and is no zombie."""
    return usage.read_stat(pid)[:1] not in ([], ["Z"])


def build_steps(request: HubMessage) -> list[HubMessage]:
    """Return the steps of a request; a session begins with its first cell, or a step of its own."""
    cells: list[HubMessage] = [{"op": "exec", "cell": cell} for cell in request["cells"]]
    if request["op"] == "open":
        begin = {"seed": request["seed"], "files": request["files"]}
        cells = [cells[0] | {"begin": begin}, *cells[1:]] if cells else [{"op": "session", **begin}]
    return cells


def measure_state(state: LiveState, now: float) -> None:
    """Measure the memory of a frozen state, and its files once: they no longer change."""
    if not state.measured_at:
        state.footprint["disk"] = usage.measure_folder(state.folder.path, 100_000)[0]
    state.footprint["memory"] = usage.read_proportional_memory(state.pid)
    state.measured_at = now


def remeasure(states: Iterable[LiveState]) -> int:
    """Measure again what was measured longest ago; return how many bytes less it is.

    Each further process that shares a page makes the share of the others smaller, so that an old
    measurement says too much. Only a few are measured at a time; the rest count as nothing until
    their turn comes.
    """
    now, gain = time.monotonic(), 0
    old = sorted(
        (state for state in states if now - state.measured_at > MEASURE_LIFETIME),
        key=lambda state: state.measured_at,
    )
    for state in old[:MAX_MEASURED]:
        before = state.footprint["memory"]
        measure_state(state, now)
        gain += before - state.footprint["memory"]
    return gain + sum(state.footprint["memory"] for state in old[MAX_MEASURED:])


def find_excess(states: LiveStates, running: LiveStates, limits: dict[str, float]) -> Excess:
    """Return what must go from the first session that exceeds a limit, or from all sessions.

    States make way first, because they can be rebuilt; a cell only if the cells alone are too much.
    """
    sessions: dict[int, list[LiveState]] = {}
    for state in [*states.values(), *running.values()]:
        sessions.setdefault(state.session, []).append(state)
    for members in sessions.values():
        for resource in RESOURCES:
            limit = limits["session_" + resource]
            if sum(state.footprint[resource] for state in members) > limit:
                excess = _make_room(members, resource, limit, "session_" + resource)
                if excess is not None:
                    return excess
    everyone = [state for members in sessions.values() for state in members]
    if sum(state.footprint["processes"] for state in everyone) > limits["all_processes"]:
        excess = _make_room(everyone, "processes", limits["all_processes"], "all_processes")
        return excess or Excess([], None, "")
    return Excess([], None, "")


def _make_room(members: list[LiveState], resource: str, limit: float, reason: str) -> Excess | None:
    cells = [state for state in members if state.job is not None and state.pid]
    if resource == "memory":
        # The check of a cell counts shared pages in full; now it is worth counting them once.
        remeasure([state for state in members if state.job is None])
        for state in cells:
            state.footprint["memory"] = measure_memory(state.pid)
    forking = _list_forking(members)
    total = sum(state.footprint[resource] for state in members)
    evicted = []
    for state in sorted(members, key=lambda state: state.last_used):
        if total <= limit:
            break
        if state.job is None and state.footprint[resource] and state.handle not in forking:
            total -= state.footprint[resource]
            evicted.append(state)
    if evicted or total <= limit:
        return Excess(evicted, None, "") if evicted else None
    largest = max(cells, key=lambda state: state.footprint[resource], default=None)
    return Excess([], largest, reason)
