"""The client of a hub behind a byte stream: requests and answers are JSON, in any order."""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from typing import Protocol

from tools.sandbox.protocol import CellResult, Limits, SandboxLost, SandboxReply

MIN_ISOLATING_LANDLOCK = 3
"""Version of Landlock from which on states cannot change each other's files."""


class Transport(Protocol):
    """A byte stream to a hub, and the means to end it."""

    name: str

    def send(self, data: bytes) -> None: ...
    def receive(self, seconds: float) -> bytes | None:
        """Return the next bytes; empty at the end, None if none came in time."""
        ...

    def kill(self) -> str:
        """End every process behind the stream in any case; return its last error output."""
        ...


def wait_readable(stream: socket.socket, seconds: float) -> bool:
    """Return True if something can be read within `seconds`."""
    poller = select.poll()
    poller.register(stream, select.POLLIN)
    return bool(poller.poll(seconds * 1e3))


def _kill_if_owner(transport: Transport, owner: int) -> None:
    """Kill the sandbox, but not from a forked process: its parent still uses the sandbox."""
    if os.getpid() == owner:
        transport.kill()


class HubSandbox:
    """A sandbox behind a stream; thread-safe. Mutated by requests that wait for an answer."""

    def __init__(self, transport: Transport, boot: Mapping[str, object], limits: Limits) -> None:
        self.name = transport.name
        self.limits = limits
        self._transport = transport
        self._lock = threading.Lock()
        self._answers: dict[int, Mapping[str, object]] = {}
        self._wakers: dict[int, threading.Event] = {0: threading.Event()}
        self._reading = False
        self._inbox = bytearray()
        self._next = 1
        self._lost: str | None = None
        weakref.finalize(self, _kill_if_owner, transport, os.getpid())
        self._send(boot)
        started = self._wait_for_answer(0, 60.0)
        self.pid = int(str(started["pid"]))
        ready = started["ready"]
        assert isinstance(ready, dict)
        self.modules = tuple(str(name) for name in ready["modules"])
        self.landlock = int(ready["landlock"])
        self.single_session = self.landlock < MIN_ISOLATING_LANDLOCK
        self.filtered = bool(ready["filtered"])
        """True if system calls are filtered: only on machines that `tools.repl.filter` knows."""

    def open(
        self,
        seed: int,
        files: Sequence[tuple[str, str]],
        cells: Sequence[str] = (),
        session: int = 0,
    ) -> SandboxReply:
        begin = {"op": "open", "seed": seed, "files": list(files), "session": session}
        return self._run_cells({**begin, "cells": list(cells)}, max(1, len(cells)))

    def run(self, state: int, cells: Sequence[str]) -> SandboxReply:
        return self._run_cells({"op": "run", "state": state, "cells": list(cells)}, len(cells))

    def drop(self, states: Sequence[int]) -> None:
        self._send({"op": "drop", "states": list(states)})

    def status(self) -> Mapping[str, int]:
        counters = self._request({"op": "status"}, 30.0)["counters"]
        assert isinstance(counters, dict)
        return counters

    def close(self) -> None:
        with self._lock:
            self._lost = self._lost or "closed"
        self._transport.kill()
        self._wake_all()

    def _run_cells(self, message: dict[str, object], count: int) -> SandboxReply:
        answer = self._request(message, self.limits.answer + self.limits.wall * count)
        results = answer["results"]
        assert isinstance(results, list)
        state, why = answer["state"], answer["why"]
        return SandboxReply(
            state if isinstance(state, int) else None,
            tuple(
                CellResult(str(one["status"]), str(one["text"]), one["seconds"], one["code"])
                for one in results
            ),
            None if why is None else str(why),
        )

    def _request(self, message: dict[str, object], seconds: float) -> Mapping[str, object]:
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._wakers[number] = threading.Event()
        self._send({**message, "id": number})
        return self._wait_for_answer(number, seconds)

    def _send(self, message: Mapping[str, object]) -> None:
        body = json.dumps(message).encode()
        with self._lock:
            if self._lost:
                raise SandboxLost(self._lost)
            try:
                self._transport.send(struct.pack("!I", len(body)) + body)
            except OSError as error:
                raise SandboxLost(f"writing to the {self.name} sandbox: {error}") from None

    def _wait_for_answer(self, number: int, seconds: float) -> Mapping[str, object]:
        """Return the answer to a request.

        There is no reader thread: the thread that waits first reads for all.
        """
        deadline = time.monotonic() + seconds
        waker = self._wakers[number]
        try:
            while True:
                with self._lock:
                    if number in self._answers:
                        return self._answers.pop(number)
                    if self._lost:
                        raise SandboxLost(self._lost)
                    is_reader = not self._reading
                    self._reading = True
                    waker.clear()
                remaining = deadline - time.monotonic()
                if is_reader:
                    self._read_answers(remaining)
                elif remaining > 0:
                    waker.wait(remaining)
                if remaining <= 0:
                    self._mark_lost(
                        f"the {self.name} sandbox did not answer within {seconds:.0f} s"
                    )
        finally:
            self._leave(number)

    def _read_answers(self, seconds: float) -> None:
        """Read once, deliver the answers, and make way for another reader."""
        try:
            part = self._transport.receive(max(seconds, 0.0))
        except (OSError, ValueError):
            part = b""
        answers = [] if part is None else self._parse(part)
        with self._lock:
            self._reading = False
            for answer in answers:
                number = answer["id"]
                assert isinstance(number, int)
                waker = self._wakers.get(number)
                if waker is not None:
                    self._answers[number] = answer
                    waker.set()
        if part == b"":
            self._mark_lost(f"the {self.name} sandbox ended")

    def _parse(self, part: bytes) -> list[dict[str, object]]:
        self._inbox += part
        answers = []
        while len(self._inbox) >= 4:
            size = struct.unpack_from("!I", self._inbox)[0]
            if len(self._inbox) < 4 + size:
                break
            answers.append(json.loads(bytes(self._inbox[4 : 4 + size])))
            del self._inbox[: 4 + size]
        return answers

    def _leave(self, number: int) -> None:
        """Stop waiting; wake another waiter to read if no thread is reading."""
        with self._lock:
            del self._wakers[number]
            self._answers.pop(number, None)
            if not self._reading:
                for waker in self._wakers.values():
                    waker.set()
                    break

    def _mark_lost(self, why: str) -> None:
        with self._lock:
            if not self._lost:
                self._lost = why
                errors = self._transport.kill()
                self._lost = f"{why}: {errors}" if errors else why
        self._wake_all()

    def _wake_all(self) -> None:
        with self._lock:
            for waker in self._wakers.values():
                waker.set()
