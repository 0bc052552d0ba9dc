"""What a session may use: its cells one after the other, its live states all together.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple

from tools import repl_usage as usage
from tools.repl_jobs import Live, memory_of
from tools.repl_link import Message

FRESH = 2.0
"""Seconds for which a measure of memory is good enough to evict by."""
AT_ONCE = 20
"""States measured in one round: a measure costs up to a millisecond."""
KINDS = ("memory", "disk", "processes")

States = dict[int, Live]


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
