"""The hub, one per sandbox: forwards cells to the processes of states, enforces limits, evicts.

It never runs a cell. It runs next to the sandbox (local) or as the container's first process
(docker), reads requests from descriptor 0 and answers on descriptor 1. It needs the standard
library alone, except for the launcher that the local sandbox adds.
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
from tools.repl.jobs import Folder, Job, LiveState, Remover
from tools.repl.link import ChannelBroken, HubMessage, HubStopped, Link, Output
from tools.repl.patrol import IDLE_CPU, Patrol

TICK = 0.05
"""Seconds between two checks of the limits."""

IDLE_TIMEOUT = 0.005
"""Seconds of silence, about a fork's time, after which the hub forks spares."""

MAX_DEPTH = 14
"""States in one chain of forks: the kernel takes sixteen Landlock layers, sandlock uses one."""

READ, BOTH = selectors.EVENT_READ, selectors.EVENT_READ | selectors.EVENT_WRITE


class Hub:
    """All states of one sandbox. Mutated by every request and every message of a state."""

    def __init__(self, settings: HubMessage, zygote: Link, group: int) -> None:
        self.limits = settings["limits"]
        self.loop = EventLoop(self._on_request, self._on_channel)
        self.states: dict[int, LiveState] = {}
        self.running: dict[int, LiveState] = {}
        self.spares: dict[int, LiveState] = {}
        self.remover = Remover()
        self.next_handle = 1
        self.disconnected: list[LiveState] = []
        """States whose channel broke while the hub wrote to it; handled by the main loop."""
        self.doomed: list[LiveState] = []
        """Dropped states, which stay until no child of theirs is being forked."""
        self.counters = {"cells": 0, "evicted": 0, "killed": 0}
        self.patrol = Patrol(self.limits, group, settings["own_disk"])
        self.zygote = LiveState(0, zygote, None, Folder(settings["folder"], None), None)
        self.spare_queue = [self.zygote]
        """States to fork in advance when nothing runs, the most likely last."""

    def serve(self) -> None:
        """Work until the other end of descriptor 0 is closed."""
        self.loop.watch(self.zygote)
        client, next_tick = os.getppid(), time.monotonic()
        while True:
            idle = bool(self.spare_queue) and not self.running
            busy = self.loop.poll(IDLE_TIMEOUT if idle else TICK if self.running else 0.5)
            while self.disconnected:
                self._on_disconnect(self.disconnected.pop())
            ready, self.doomed = self.patrol.split_doomed(self.doomed, self.running | self.spares)
            for state in ready:
                self.forget(state)
            if idle and not busy:
                self._fork_spare(self.spare_queue.pop())
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK
                self._check_limits(now)
            if os.getppid() != client:
                raise HubStopped("the learner is gone")

    def _on_request(self, message: HubMessage) -> None:
        operation = message["op"]
        if operation == "open":
            state = self._run(self.zygote, message["id"], patrol.build_steps(message))
            state.session = message["session"] or -state.handle
            self._fork_spare(self.zygote)
        elif operation == "run":
            parent = self.states.get(message["state"])
            why = "deep"
            if parent is None or parent.job is not None or parent in self.doomed:
                why = self.patrol.explain_absence(message["state"])
            elif parent.depth < MAX_DEPTH:
                self._run(parent, message["id"], patrol.build_steps(message))
                return
            write_answer({"id": message["id"], "state": None, "results": [], "why": why})
        elif operation == "drop":
            self.doomed += [self.states[one] for one in message["states"] if one in self.states]
        elif operation == "status":
            counts = {"running": len(self.running), "spares": len(self.spares)}
            counts.update(self.patrol.count(self.states), **self.counters)
            write_answer({"id": message["id"], "counters": counts})

    def _run(
        self,
        parent: LiveState,
        request: int,
        steps: list[HubMessage],
        results: tuple[HubMessage, ...] = (),
    ) -> LiveState:
        """Give `steps` to a child of `parent`: its spare if it has one, else a new child."""
        state, parent.spare = parent.spare or self._fork(parent), None
        self.spares.pop(state.handle, None)
        self.running[state.handle] = state
        state.last_used = parent.last_used = time.monotonic()
        assert state.job is not None
        job = state.job
        job.assign(request, steps, results)
        try:
            if steps:
                self.loop.send(state, steps[0])
        except ChannelBroken:
            self._on_disconnect(state)
        else:
            if state.pid:
                self._advance(state, job, sent=True)
        return state

    def _fork_spare(self, parent: LiveState) -> None:
        """Fork a state in advance, so that the next cell has a process waiting."""
        if parent.spare or parent.link.fileno() < 0 or parent.job or parent.depth >= MAX_DEPTH:
            return
        if self.spares and len(self.spares) >= self.limits["spares"]:
            oldest = next(iter(self.spares.values()))
            if not oldest.pid:
                return
            self._drop_spare(oldest)
        if self.limits["spares"]:
            parent.spare = state = self._fork(parent)
            self.spares[state.handle] = state

    def _drop_spare(self, state: LiveState) -> None:
        del self.spares[state.handle]
        if state.parent is not None:
            state.parent.spare = None
        assert state.job is not None
        self.loop.close_output(state.job)
        state.job = None
        self.forget(state)

    def _fork(self, parent: LiveState) -> LiveState:
        """Make `parent` fork; its child becomes a state of its own."""
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        # The name cannot be guessed: a cell may open a path that it cannot list.
        folder = Folder(f"{parent.folder.path}/.~{secrets.token_hex(6)}", parent.folder)
        link, job = Link(), Job(Output(int(self.limits["output_shown"])))
        state = LiveState(handle, link, parent, folder, job)
        parent.forks += 1
        self.loop.watch(state)
        self.loop.watch_output(job, lambda: self._on_output(state))
        message = {"op": "fork", "folder": folder.path}
        try:
            self.loop.send(parent, message, (link.state_end.detach(), job.output.writer))
        except ChannelBroken:
            self.disconnected.append(parent)
        return state

    def _on_output(self, state: LiveState) -> None:
        job = state.job
        if job is not None and job.output_open and not job.output.read():
            self.loop.unwatch_output(job)
        elif job is not None and (reason := job.check_output(state, self.limits)):
            self._stop(state, reason)

    def _on_channel(self, state: LiveState, events: int) -> None:
        if state.link.fileno() < 0:
            return
        try:
            if events & selectors.EVENT_WRITE:
                self.loop.flush(state)
            if events & selectors.EVENT_READ:
                for message in state.link.receive():
                    self._on_message(state, message)
        except ChannelBroken:
            self._on_disconnect(state)

    def _on_message(self, state: LiveState, message: HubMessage) -> None:
        """Handle a state's message. A cell may have forged it: it affects this state alone."""
        job, operation = state.job, message.get("op")
        if job is None:
            raise ChannelBroken("out of turn")
        if not state.pid:
            state.identify(state.link.sender)
        if state.link.sender != state.pid:
            raise ChannelBroken("another process")
        if operation == "done" and job.current is not None:
            if job.output_open:
                job.output.read()
            job.record("ok" if message.get("status") == "ok" else "error")
            job.output.clear()
            self.counters["cells"] += 1
            if message.get("threads") is True:
                self._shed_threads(state, job)
                return
        elif operation == "sweep" and job.current is not None:
            count = usage.kill_tree(state.pid, itself=False, group=self.patrol.first_pid)
            self.loop.send(state, {"op": "swept", "count": count})
            return
        elif operation != "born" or job.current is not None:
            raise ChannelBroken("out of turn")
        if job.request:
            # The first step was sent before the state was born.
            self._advance(state, job, sent=operation == "born")

    def _advance(self, state: LiveState, job: Job, sent: bool) -> None:
        """Go on to the next step, or finish."""
        following = job.advance()
        if following is None:
            self._finish(state, None)
            return
        job.start(state.pid)
        if not sent:
            self.loop.send(state, following)

    def _freeze(self, state: LiveState, job: Job) -> None:
        """Turn a running process into a state, which only forks from now on."""
        self.loop.close_output(job)
        state.freeze()
        state.cpu_allowance = usage.read_cpu(state.pid) + IDLE_CPU
        del self.running[state.handle]
        self.states[state.handle] = state

    def _shed_threads(self, state: LiveState, job: Job) -> None:
        """Go on in a child and end this process: threads do not survive a fork."""
        self._freeze(state, job)
        state.is_transient = True
        self._run(state, job.request, list(reversed(job.steps)), (*job.results,))

    def _finish(self, state: LiveState, why: str | None) -> None:
        """Answer a job and keep its state if nothing went wrong."""
        job = state.job
        assert job is not None
        self._freeze(state, job)
        if why is not None:
            del self.states[state.handle]
        parent = state.parent
        assert parent is not None
        if parent.is_transient:
            self.forget(parent)
        handle = state.handle if why is None else None
        write_answer({"id": job.request, "state": handle, "results": job.results, "why": why})
        likely, other = (parent, state) if parent.is_branching() else (state, parent)
        self.spare_queue = [*self.spare_queue[-30:], other, likely]

    def _on_disconnect(self, state: LiveState) -> None:
        """Handle a closed channel: the process died, or closed it to hide."""
        job = state.job
        if state is self.zygote:
            raise HubStopped("the first process is gone")
        if state.handle in self.spares:
            self._drop_spare(state)
        elif job is None:
            self.patrol.blame(state)
            self.forget(state)
        else:
            self._stop(state, *self.patrol.explain_end(state, job))

    def _stop(self, state: LiveState, reason: str, code: int | None = None) -> None:
        """End a running cell; the state before it is untouched."""
        assert state.job is not None
        job = state.job
        if state.pid:
            usage.kill_tree(state.pid, itself=False, group=self.patrol.first_pid)
        state.kill()
        if job.output_open:
            job.output.read()
        job.record(reason, code)
        self.counters["killed"] += 1
        self._finish(state, reason)
        self.forget(state)
        self.patrol.sweep(self.states, self.running | self.spares)

    def forget(self, state: LiveState) -> None:
        """End a state's process and release its resources."""
        if state.link.fileno() < 0:
            return
        if state.spare is not None:
            self._drop_spare(state.spare)
        self.states.pop(state.handle, None)
        self.patrol.expect_end(state.pid)
        self.loop.unwatch(state)
        state.kill()
        state.link.close()
        state.close()
        if state.parent is not None and state.parent.link.fileno() >= 0 and state.pid:
            with contextlib.suppress(ChannelBroken):
                self.loop.send(state.parent, {"op": "reap", "pid": state.pid})
        state.folder.release(self.remover)
        # A child that is not born yet still copies the files.
        if not any(child.parent is state and not child.pid for child in self.running.values()):
            state.folder.empty(self.remover)

    def _check_limits(self, now: float) -> None:
        count = len(self.running)
        for state in list(self.running.values()):
            reason = state.job.check(state, self.limits, now, count) if state.job else None
            if reason:
                self._stop(state, reason)
        for state in list(self.spares.values()):
            if not state.pid and now - state.last_used > self.limits["start"]:
                self._drop_spare(state)
        excess = patrol.find_excess(self.states, self.running, self.limits)
        if excess.cell is not None:
            self._stop(excess.cell, excess.reason)
        surplus = self.patrol.run_round(now, self.states, self.running | self.spares)
        for state in [*excess.states, *surplus]:
            self.counters["killed" if state.misbehaved else "evicted"] += 1
            self.forget(state)


class EventLoop:
    """Waits for channels, outputs and requests, and calls their handlers. Mutated by watching."""

    def __init__(
        self,
        on_request: Callable[[HubMessage], None],
        on_channel: Callable[[LiveState, int], None],
    ) -> None:
        self.on_request = on_request
        self.on_channel = on_channel
        self.selector = selectors.DefaultSelector()
        self.inbox = bytearray()
        os.set_blocking(0, False)
        self.selector.register(0, READ, lambda _events: self._read_requests())

    def poll(self, seconds: float) -> bool:
        """Wait for up to `seconds` and handle what came; return True if anything did."""
        ready = self.selector.select(seconds)
        for key, events in ready:
            key.data(events)
        return bool(ready)

    def watch(self, state: LiveState) -> None:
        self.selector.register(state.link, READ, lambda events: self.on_channel(state, events))

    def unwatch(self, state: LiveState) -> None:
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(state.link)

    def flush(self, state: LiveState) -> None:
        """Write what is queued for a state."""
        if state.link.flush():
            self.selector.modify(state.link, READ, lambda events: self.on_channel(state, events))

    def send(self, state: LiveState, message: HubMessage, fds: tuple[int, ...] = ()) -> None:
        """Send a message now or once there is room; ChannelBroken if the state is gone."""
        if not state.link.send(message, fds):
            self.selector.modify(state.link, BOTH, lambda events: self.on_channel(state, events))

    def watch_output(self, job: Job, on_output: Callable[[], None]) -> None:
        """Call `on_output` whenever a cell has written output."""
        self.selector.register(job.output, READ, lambda _events: on_output())

    def unwatch_output(self, job: Job) -> None:
        if job.output_open:
            job.output_open = False
            self.selector.unregister(job.output)

    def close_output(self, job: Job) -> None:
        self.unwatch_output(job)
        job.output.close()

    def _read_requests(self) -> None:
        data = os.read(0, 1 << 16)
        if not data:
            raise HubStopped("the learner is gone")
        self.inbox += data
        while len(self.inbox) >= 4:
            size = struct.unpack_from("!I", self.inbox)[0]
            if len(self.inbox) < 4 + size:
                break
            body = bytes(self.inbox[4 : 4 + size])
            del self.inbox[: 4 + size]
            self.on_request(json.loads(body))


def write_answer(message: HubMessage) -> None:
    """Write an answer, waiting if need be: the reader is the learner, which always reads."""
    body = json.dumps(message).encode()
    data = memoryview(struct.pack("!I", len(body)) + body)
    while data:
        try:
            data = data[os.write(1, data) :]
        except BlockingIOError:
            time.sleep(0.001)
