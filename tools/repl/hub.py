"""The hub, one per sandbox: knows every state's process, forwards cells, watches limits, evicts.

It never runs a cell. Beside the sandbox (local) or as the container's first process (docker) it
reads requests on descriptor 0 and answers on descriptor 1. Standard library alone, but for the
launcher that the local sandbox adds.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import struct
import time
from collections.abc import Callable

from tools.repl import patrol, usage
from tools.repl.jobs import Folder, Job, Live, Remover
from tools.repl.link import Broken, Ended, Link, Message, Output
from tools.repl.patrol import PATIENCE, Patrol

TICK = 0.05


DEEPEST = 14
"""States in one chain of forks: the kernel takes sixteen Landlock layers, sandlock has used one."""


class Hub:
    """All states of one sandbox. Mutated by every request and every message of a state."""

    def __init__(self, settings: Message, zygote: Link, group: int) -> None:
        self.limits = settings["limits"]
        self.wires = Wires(self._request, self._heard)
        self.states: dict[int, Live] = {}
        self.running: dict[int, Live] = {}
        self.spares: dict[int, Live] = {}
        self.remover = Remover()
        self.next_handle = 1
        self.dead: list[Live] = []
        self.doomed: list[Live] = []
        self.counters = {"cells": 0, "evicted": 0, "killed": 0}
        self.patrol = Patrol(self.limits, group, settings["own_disk"])
        self.zygote = Live(0, zygote, None, Folder(settings["folder"], None), None)
        self.wanted = [self.zygote]

    def serve(self) -> None:
        """Work until the other end of descriptor 0 is closed."""
        self.wires.watch(self.zygote)
        begun, next_tick = os.getppid(), time.monotonic()
        while True:
            idle = bool(self.wanted) and not self.running
            spoken = self.wires.turn(MOMENT if idle else TICK if self.running else 0.5)
            while self.dead:
                self._ended(self.dead.pop())
            go, self.doomed = self.patrol.part(self.doomed, self.running | self.spares)
            for live in go:
                self.forget(live)
            if idle and not spoken:
                self._prepare(self.wanted.pop())
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)
            if os.getppid() != begun:
                raise Ended("the learner is gone")

    def _request(self, message: Message) -> None:
        operation = message["op"]
        if operation == "open":
            live = self._run(self.zygote, message["id"], patrol.steps(message))
            live.session = message["session"] or -live.handle
            self._prepare(self.zygote)
        elif operation == "run":
            parent = self.states.get(message["state"])
            why = "deep"
            if parent is None or parent.job is not None or parent in self.doomed:
                why = self.patrol.why_gone(message["state"])
            elif parent.depth < DEEPEST:
                self._run(parent, message["id"], patrol.steps(message))
                return
            answer({"id": message["id"], "state": None, "results": [], "why": why})
        elif operation == "drop":
            self.doomed += [self.states[one] for one in message["states"] if one in self.states]
        elif operation == "status":
            counts = {"running": len(self.running), "spares": len(self.spares)}
            counts.update(self.patrol.counts(self.states), **self.counters)
            answer({"id": message["id"], "counters": counts})

    def _run(
        self, parent: Live, request: int, steps: list[Message], results: tuple[Message, ...] = ()
    ) -> Live:
        """Give `steps` to a child of `parent`: the spare one if there is, else a new one."""
        live, parent.spare = parent.spare or self._fork(parent), None
        self.spares.pop(live.handle, None)
        self.running[live.handle] = live
        live.used = parent.used = time.monotonic()
        assert live.job is not None
        job = live.job
        job.give(request, steps, results)
        try:
            if steps:
                self.wires.send(live, steps[0])
        except Broken:
            self._ended(live)
        else:
            if live.pid:
                self._advance(live, job, sent=True)
        return live

    def _prepare(self, parent: Live) -> None:
        """Fork a state in advance: the next cell finds its process waiting."""
        if parent.spare or parent.link.fileno() < 0 or parent.job or parent.depth >= DEEPEST:
            return
        if self.spares and len(self.spares) >= self.limits["spares"]:
            oldest = next(iter(self.spares.values()))
            if not oldest.pid:
                return
            self._drop_spare(oldest)
        if self.limits["spares"]:
            parent.spare = live = self._fork(parent)
            self.spares[live.handle] = live

    def _drop_spare(self, live: Live) -> None:
        del self.spares[live.handle]
        if live.parent is not None:
            live.parent.spare = None
        assert live.job is not None
        self.wires.close_output(live.job)
        live.job = None
        self.forget(live)

    def _fork(self, parent: Live) -> Live:
        """Have `parent` fork; its child becomes a state of its own."""
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        # A name that nobody can guess: a cell may ask for what it cannot list.
        folder = Folder(f"{parent.folder.path}/.~{secrets.token_hex(6)}", parent.folder)
        link, job = Link(), Job(Output(int(self.limits["output_shown"])))
        live = Live(handle, link, parent, folder, job)
        parent.forks += 1
        self.wires.watch(live)
        self.wires.listen(job, lambda: self._wrote(live))
        message = {"op": "fork", "folder": folder.path}
        try:
            self.wires.send(parent, message, (link.theirs.detach(), job.output.writer))
        except Broken:
            self.dead.append(parent)
        return live

    def _wrote(self, live: Live) -> None:
        job = live.job
        if job is not None and job.output_open and not job.output.read():
            self.wires.stop_listening(job)
        elif job is not None and (reason := job.wrote_too_much(live, self.limits)):
            self._stop(live, reason)

    def _heard(self, live: Live, events: int) -> None:
        if live.link.fileno() < 0:
            return
        try:
            if events & selectors.EVENT_WRITE:
                self.wires.flush(live)
            if events & selectors.EVENT_READ:
                for message in live.link.receive():
                    self._message(live, message)
        except Broken:
            self._ended(live)

    def _message(self, live: Live, message: Message) -> None:
        """A state spoke: nothing it says concerns any state but itself."""
        job, operation = live.job, message.get("op")
        if job is None:
            raise Broken("out of turn")
        if not live.pid:
            live.identify(live.link.sender)
        if live.link.sender != live.pid:
            raise Broken("somebody else")
        if operation == "done" and job.current is not None:
            if job.output_open:
                job.output.read()
            job.record("ok" if message.get("status") == "ok" else "error")
            job.output.clear()
            self.counters["cells"] += 1
            if message.get("threads") is True:
                self._shed_threads(live, job)
                return
        elif operation == "sweep" and job.current is not None:
            count = usage.end_family(live.pid, itself=False, group=self.patrol.first)
            self.wires.send(live, {"op": "swept", "count": count})
            return
        elif operation != "born" or job.current is not None:
            raise Broken("out of turn")
        if job.request:
            # The first step has been there since before the state was born.
            self._advance(live, job, sent=operation == "born")

    def _advance(self, live: Live, job: Job, sent: bool) -> None:
        """Go on to the next step, or finish."""
        following = job.advance()
        if following is None:
            self._finish(live, None)
            return
        job.start(live.pid)
        if not sent:
            self.wires.send(live, following)

    def _freeze(self, live: Live, job: Job) -> None:
        """From here on the process only forks."""
        self.wires.close_output(job)
        live.freeze()
        live.cpu_allowed = usage.own_cpu(live.pid) + PATIENCE
        del self.running[live.handle]
        self.states[live.handle] = live

    def _shed_threads(self, live: Live, job: Job) -> None:
        """Threads do not survive a fork: go on in a child, and end the process that has them."""
        self._freeze(live, job)
        live.passing = True
        self._run(live, job.request, list(reversed(job.steps)), (*job.results,))

    def _finish(self, live: Live, why: str | None) -> None:
        """Answer a job and keep its state if nothing went wrong."""
        job = live.job
        assert job is not None
        self._freeze(live, job)
        if why is not None:
            del self.states[live.handle]
        parent = live.parent
        assert parent is not None
        if parent.passing:
            self.forget(parent)
        kept = live.handle if why is None else None
        answer({"id": job.request, "state": kept, "results": job.results, "why": why})
        likely, other = (parent, live) if parent.branches() else (live, parent)
        self.wanted = [*self.wanted[-30:], other, likely]

    def _ended(self, live: Live) -> None:
        """A state's channel closed: its process died, or closed it to hide."""
        job = live.job
        if live is self.zygote:
            raise Ended("the first process is gone")
        if live.handle in self.spares:
            self._drop_spare(live)
        elif job is None:
            self.patrol.blame(live)
            self.forget(live)
        else:
            self._stop(live, *self.patrol.how_it_ended(live, job))

    def _stop(self, live: Live, reason: str, code: int | None = None) -> None:
        """End a running cell; the state before it is untouched."""
        assert live.job is not None
        job = live.job
        if live.pid:
            usage.end_family(live.pid, itself=False, group=self.patrol.first)
        live.kill()
        if job.output_open:
            job.output.read()
        job.record(reason, code)
        self.counters["killed"] += 1
        self._finish(live, reason)
        self.forget(live)
        self.patrol.sweep(self.states, self.running | self.spares)

    def forget(self, live: Live) -> None:
        """End a state's process and give back what it held."""
        if live.link.fileno() < 0:
            return
        if live.spare is not None:
            self._drop_spare(live.spare)
        self.states.pop(live.handle, None)
        self.patrol.killed(live.pid)
        self.wires.forget(live)
        live.kill()
        live.link.close()
        live.close()
        if live.parent is not None and live.parent.link.fileno() >= 0 and live.pid:
            with contextlib.suppress(Broken):
                self.wires.send(live.parent, {"op": "reap", "pid": live.pid})
        live.folder.release(self.remover)
        if not any(child.parent is live and not child.pid for child in self.running.values()):
            live.folder.empty(self.remover)

    def _tick(self, now: float) -> None:
        crowd = len(self.running)
        for live in list(self.running.values()):
            reason = live.job.over(live, self.limits, now, crowd) if live.job else None
            if reason:
                self._stop(live, reason)
        for live in list(self.spares.values()):
            if not live.pid and now - live.used > self.limits["start"]:
                self._drop_spare(live)
        excess = patrol.excess(self.states, self.running, self.limits)
        if excess.cell is not None:
            self._stop(excess.cell, excess.reason)
        guilty = self.patrol.look(now, self.states, self.running | self.spares)
        for live in [*excess.states, *guilty]:
            self.counters["evicted" if live.calm else "killed"] += 1
            self.forget(live)


MOMENT = 0.005
"""Seconds of silence, about a fork's time, after which the learner is taken to be thinking."""


READ, BOTH = selectors.EVENT_READ, selectors.EVENT_READ | selectors.EVENT_WRITE


class Wires:
    """Waits for all that can be read, and calls those whom it concerns. Mutated by watching."""

    def __init__(
        self, request: Callable[[Message], None], heard: Callable[[Live, int], None]
    ) -> None:
        self.request = request
        self.heard = heard
        self.selector = selectors.DefaultSelector()
        self.inbox = bytearray()
        os.set_blocking(0, False)
        self.selector.register(0, READ, lambda _events: self._requests())

    def turn(self, seconds: float) -> bool:
        """Wait at most so long; deliver what came; whether anything did."""
        came = self.selector.select(seconds)
        for key, events in came:
            key.data(events)
        return bool(came)

    def watch(self, live: Live) -> None:
        self.selector.register(live.link, READ, lambda events: self.heard(live, events))

    def forget(self, live: Live) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(live.link)

    def flush(self, live: Live) -> None:
        """Write what waits for a state."""
        if live.link.flush():
            self.selector.modify(live.link, READ, lambda events: self.heard(live, events))

    def send(self, live: Live, message: Message, fds: tuple[int, ...] = ()) -> None:
        """Say something to a state, at once or when it has room; Broken if it is gone."""
        if not live.link.send(message, fds):
            self.selector.modify(live.link, BOTH, lambda events: self.heard(live, events))

    def listen(self, job: Job, wrote: Callable[[], None]) -> None:
        """Call `wrote` whenever a cell has written output."""
        self.selector.register(job.output, READ, lambda _events: wrote())

    def stop_listening(self, job: Job) -> None:
        if job.output_open:
            job.output_open = False
            self.selector.unregister(job.output)

    def close_output(self, job: Job) -> None:
        self.stop_listening(job)
        job.output.close()

    def _requests(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            raise Ended("the learner is gone")
        self.inbox += data
        while len(self.inbox) >= 4:
            size = struct.unpack_from("!I", self.inbox)[0]
            if len(self.inbox) < 4 + size:
                break
            body = bytes(self.inbox[4 : 4 + size])
            del self.inbox[: 4 + size]
            self.request(json.loads(body))


def answer(message: Message) -> None:
    """Write one answer; the reader is ours and always reads."""
    body = json.dumps(message).encode()
    data = memoryview(struct.pack("!I", len(body)) + body)
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            time.sleep(0.001)
