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
import sys
import time
from typing import Any

from tools import repl_kernel as kernel
from tools import repl_usage as usage
from tools.repl_jobs import Folder, Job, Live, Remover, remove
from tools.repl_link import Broken, Ended, Link, Message, Output
from tools.repl_patrol import PATIENCE, Patrol

TICK = 0.05
DEEPEST = 14
"""States in one chain of forks: the kernel takes sixteen Landlock layers, sandlock has used one."""


class Hub:
    """All states of one sandbox. Mutated by every request and every message of a state."""

    def __init__(self, settings: Message, zygote: Link, group: int) -> None:
        self.limits = settings["limits"]
        self.base = settings["folder"]
        self.selector = selectors.DefaultSelector()
        self.states: dict[int, Live] = {}
        self.running: dict[int, Live] = {}
        self.remover = Remover()
        self.next_handle = 1
        self.inbox = bytearray()
        self.counters = {"cells": 0, "evicted": 0, "killed": 0}
        self.patrol = Patrol(self.limits, group, settings["own_disk"])
        self.zygote = Live(0, zygote, None, Folder(self.base, None), None)

    def serve(self) -> None:
        """Work until the other end of descriptor 0 is closed."""
        os.set_blocking(0, False)
        self.selector.register(0, selectors.EVENT_READ, self._requests)
        self._watch(self.zygote)
        begun = os.getppid()
        next_tick = time.monotonic()
        while True:
            for key, events in self.selector.select(TICK if self.running else 0.5):
                key.data(events)
            now = time.monotonic()
            if now >= next_tick:
                next_tick = now + TICK
                self._tick(now)
            if os.getppid() != begun:
                raise Ended("the learner is gone")

    def _watch(self, live: Live) -> None:
        self.selector.register(
            live.link, selectors.EVENT_READ, lambda events: self._heard(live, events)
        )

    # Requests

    def _requests(self, _events: int) -> None:
        data = os.read(0, 1 << 20)
        if not data:
            raise Ended("the learner is gone")
        self.inbox += data
        while len(self.inbox) >= 4:
            size = struct.unpack_from("!I", self.inbox)[0]
            if len(self.inbox) < 4 + size:
                break
            body = bytes(self.inbox[4 : 4 + size])
            del self.inbox[: 4 + size]
            self._request(json.loads(body))

    def _request(self, message: Message) -> None:
        operation = message["op"]
        if operation == "open":
            cells = [{"op": "session", "seed": message["seed"], "files": message["files"]}]
            self._fork(self.zygote, message["id"], cells)
        elif operation == "run":
            parent = self.states.get(message["state"])
            cells = [{"op": "exec", "cell": cell} for cell in message["cells"]]
            if parent is None or parent.job is not None:
                self.answer({"id": message["id"], "state": None, "results": [], "why": "gone"})
            elif parent.depth >= DEEPEST:
                self.answer({"id": message["id"], "state": None, "results": [], "why": "deep"})
            else:
                self._fork(parent, message["id"], cells)
        elif operation == "drop":
            for handle in message["states"]:
                live = self.states.get(handle)
                if live is not None and live.job is None:
                    self.forget(live)
        elif operation == "status":
            counts = {**self.counters, "states": len(self.states), "running": len(self.running)}
            counts["strays"] = self.patrol.strays
            counts["bytes"] = sum(live.memory for live in self.states.values())
            self.answer({"id": message["id"], "counters": counts})

    def answer(self, message: Message) -> None:
        """Write one answer; the reader is ours and always reads."""
        body = json.dumps(message).encode()
        data = memoryview(struct.pack("!I", len(body)) + body)
        while data:
            try:
                data = data[os.write(1, data) :]
            except BlockingIOError:
                time.sleep(0.001)

    # States

    def _fork(
        self,
        parent: Live,
        request: int,
        steps: list[Message],
        results: list[Message] | None = None,
    ) -> None:
        """Have `parent` fork; its child becomes a state of its own and is given `steps`."""
        handle, self.next_handle = self.next_handle, self.next_handle + 1
        # A name that nobody can guess: a cell may ask for what it cannot list.
        name = ".~" + secrets.token_hex(6)
        folder = Folder(os.path.join(parent.folder.path, name), parent.folder)
        link, output = Link(), Output(int(self.limits["output_shown"]))
        live = Live(handle, link, parent, folder, Job(request, steps, output, results))
        parent.used = live.used
        parent.forks += 1
        self.running[handle] = live
        self._watch(live)
        self.selector.register(output, selectors.EVENT_READ, lambda _events: self._wrote(live))
        message = {"op": "fork", "folder": folder.path}
        try:
            self._send(parent, message, (link.theirs.detach(), output.writer))
            if steps:
                self._send(live, steps[0])
        except Broken:
            self._ended(parent)

    def _wrote(self, live: Live) -> None:
        job = live.job
        if job is None or not job.output_open:
            return
        if not job.output.read():
            self.selector.unregister(job.output)
            job.output_open = False
        elif job.output.total > self.limits["output"]:
            self._stop(live, "output")

    def _heard(self, live: Live, events: int) -> None:
        if live.link.fileno() < 0:
            return
        try:
            if events & selectors.EVENT_WRITE and live.link.flush():
                self.selector.modify(
                    live.link, selectors.EVENT_READ, lambda events: self._heard(live, events)
                )
            if events & selectors.EVENT_READ:
                for message in live.link.receive():
                    self._message(live, message)
        except Broken:
            self._ended(live)

    def _send(self, live: Live, message: Message, fds: tuple[int, ...] = ()) -> None:
        if not live.link.send(message, fds):
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            self.selector.modify(live.link, both, lambda events: self._heard(live, events))

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
            self.counters["cells"] += 1
            if message.get("threads") is True:
                self._shed_threads(live, job)
                return
        elif operation == "sweep" and job.current is not None:
            self._send(live, {"op": "swept", "count": usage.end_family(live.pid, itself=False)})
            return
        elif operation != "born" or job.current is not None:
            raise Broken("out of turn")
        following = job.advance()
        if following is not None:
            job.start(live.pid)
            # The first step has been there since before the state was born.
            if operation != "born":
                self._send(live, following)
        else:
            self._finish(live, None)

    def _freeze(self, live: Live, job: Job) -> None:
        """From here on the process only forks."""
        if job.output_open:
            self.selector.unregister(job.output)
        job.output.close()
        live.job = None
        live.cpu_allowed = usage.own_cpu(live.pid) + PATIENCE
        del self.running[live.handle]
        self.states[live.handle] = live

    def _shed_threads(self, live: Live, job: Job) -> None:
        """Threads do not survive a fork: go on in a child, and end the process that has them."""
        self._freeze(live, job)
        live.passing = True
        self._fork(live, job.request, list(reversed(job.steps)), job.results)

    def _finish(self, live: Live, why: str | None) -> None:
        """Answer a job and keep its state if nothing went wrong."""
        job = live.job
        assert job is not None
        self._freeze(live, job)
        if why is not None:
            del self.states[live.handle]
        if live.parent is not None and live.parent.passing:
            self.forget(live.parent)
        self.answer(
            {
                "id": job.request,
                "state": live.handle if why is None else None,
                "results": job.results,
                "why": why,
            }
        )

    def _ended(self, live: Live) -> None:
        """A state's channel closed: its process died, or closed it to hide."""
        job = live.job
        if live is self.zygote:
            raise Ended("the first process is gone")
        if job is None:
            self.forget(live)
            return
        code = usage.exit_code(live.pid) if live.pid else None
        self._stop(live, "crash" if job.current is not None else "fault", code)

    def _stop(self, live: Live, reason: str, code: int | None = None) -> None:
        """End a running cell; the state before it is untouched."""
        job = live.job
        assert job is not None
        if live.pid:
            usage.end_family(live.pid, itself=False)
        live.kill()
        if job.output_open:
            job.output.read()
        job.record(reason, code)
        self.counters["killed"] += 1
        self._finish(live, reason)
        self.forget(live)
        self.patrol.sweep(self.states, self.running)

    def forget(self, live: Live) -> None:
        """End a state's process and give back what it held."""
        if live.link.fileno() < 0:
            return
        self.states.pop(live.handle, None)
        self.patrol.killed(live.pid)
        with contextlib.suppress(KeyError, ValueError):
            self.selector.unregister(live.link)
        live.kill()
        live.link.close()
        live.close()
        if live.parent is not None and live.parent.link.fileno() >= 0 and live.pid:
            with contextlib.suppress(Broken):
                self._send(live.parent, {"op": "reap", "pid": live.pid})
        live.folder.release(self.remover)

    def _tick(self, now: float) -> None:
        for live in list(self.running.values()):
            reason = live.job.over(live, self.limits, now) if live.job else None
            if reason:
                self._stop(live, reason)
        for live in self.patrol.look(now, self.states, self.running):
            self.counters["evicted" if live.calm else "killed"] += 1
            self.forget(live)


def main(settings: Message) -> None:
    """Start the first process in its sandbox, say so, and serve."""
    kernel.LIBC.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    kernel.LIBC.prctl(kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)
    launch = sys.modules["tools." + settings["launcher"]].launch
    link = Link()
    pid, end = launch(settings, link.theirs)
    link.theirs.close()
    link.socket.setblocking(True)
    kernel.offer_to_the_oom_killer(pid)
    hub = Hub(settings, link, pid)
    try:
        body: dict[str, Any] = {"modules": settings["modules"], "entry": "repl_state"}
        body["settings"] = settings["state"]
        link.send(body)
        ready: list[Message] = []
        while not ready:
            ready = link.receive()
        link.socket.setblocking(False)
        link.send({"op": "limits", "limits": usage.process_limits(pid, settings["limits"])})
        hub.answer({"id": 0, "ready": ready[0], "pid": pid})
        hub.serve()
    except (Broken, Ended) as error:
        sys.stderr.write(f"{error}\n")
    finally:
        end()
        hub.remover.close()
        remove(settings["folder"])
