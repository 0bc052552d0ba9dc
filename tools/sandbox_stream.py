"""A sandbox behind a byte stream: requests and answers in any order, as JSON."""

import json
import struct
import threading
from collections.abc import Mapping, Sequence
from typing import Protocol

from tools.sandbox import CellResult, Limits, Reply, SandboxLost


class Transport(Protocol):
    """A byte stream to a hub, and the means to end it."""

    name: str

    def send(self, data: bytes) -> None: ...
    def receive(self) -> bytes:
        """The next bytes; empty at the end."""
        ...

    def kill(self) -> str:
        """End every process behind the stream, however it fares; what it last complained of."""
        ...


class HubSandbox:
    """A sandbox behind a stream. Mutable: the requests that wait for an answer."""

    def __init__(self, transport: Transport, boot: Mapping[str, object], limits: Limits) -> None:
        self.name = transport.name
        self.limits = limits
        self.ready: dict[str, object] = {}
        self._transport = transport
        self._lock = threading.Lock()
        self._waiting: dict[int, list[object]] = {}
        self._wakers: dict[int, threading.Event] = {}
        self._next = 1
        self._lost: str | None = None
        self._wakers[0] = threading.Event()
        self._post(boot)
        self._reader = threading.Thread(target=self._read, daemon=True, name="sandbox-reader")
        self._reader.start()
        started = self._wait(0, 60.0)
        self.pid = int(str(started["pid"]))
        self.ready = dict(started)

    def open(self, seed: int, files: Sequence[tuple[str, str]]) -> Reply:
        return self._cells({"op": "open", "seed": seed, "files": list(files)}, 1)

    def run(self, state: int, cells: Sequence[str]) -> Reply:
        return self._cells({"op": "run", "state": state, "cells": list(cells)}, len(cells))

    def drop(self, states: Sequence[int]) -> None:
        self._post({"op": "drop", "states": list(states)})

    def status(self) -> Mapping[str, int]:
        counters = self._ask({"op": "status"}, 30.0)["counters"]
        assert isinstance(counters, dict)
        return counters

    def close(self) -> None:
        with self._lock:
            self._lost = self._lost or "closed"
        self._transport.kill()
        if threading.current_thread() is not self._reader:
            self._reader.join(10)

    def _cells(self, message: dict[str, object], count: int) -> Reply:
        answer = self._ask(message, self.limits.answer + self.limits.wall * count)
        results = answer["results"]
        assert isinstance(results, list)
        state, why = answer["state"], answer["why"]
        return Reply(
            state if isinstance(state, int) else None,
            tuple(
                CellResult(str(one["status"]), str(one["text"]), one["seconds"], one["code"])
                for one in results
            ),
            None if why is None else str(why),
        )

    def _ask(self, message: dict[str, object], seconds: float) -> Mapping[str, object]:
        with self._lock:
            number, self._next = self._next, self._next + 1
            self._wakers[number] = threading.Event()
        self._post({**message, "id": number})
        return self._wait(number, seconds)

    def _post(self, message: Mapping[str, object]) -> None:
        body = json.dumps(message).encode()
        with self._lock:
            if self._lost:
                raise SandboxLost(self._lost)
            try:
                self._transport.send(struct.pack("!I", len(body)) + body)
            except OSError as error:
                raise SandboxLost(f"writing to the {self.name} sandbox: {error}") from None

    def _wait(self, number: int, seconds: float) -> Mapping[str, object]:
        answered = self._wakers[number].wait(seconds)
        with self._lock:
            del self._wakers[number]
            found = self._waiting.pop(number, None)
            lost = self._lost
        if found is None:
            if not answered:
                lost = f"the {self.name} sandbox did not answer within {seconds:.0f} s"
                self._lose(lost)
            raise SandboxLost(lost or "lost")
        answer = found[0]
        assert isinstance(answer, dict)
        return answer

    def _read(self) -> None:
        data = bytearray()
        try:
            while part := self._transport.receive():
                data += part
                while len(data) >= 4:
                    size = struct.unpack_from("!I", data)[0]
                    if len(data) < 4 + size:
                        break
                    self._deliver(json.loads(bytes(data[4 : 4 + size])))
                    del data[: 4 + size]
        except OSError:
            pass
        self._lose(f"the {self.name} sandbox ended")

    def _deliver(self, answer: dict[str, object]) -> None:
        number = answer["id"]
        assert isinstance(number, int)
        with self._lock:
            waker = self._wakers.get(number)
            if waker is not None:
                self._waiting[number] = [answer]
                waker.set()

    def _lose(self, why: str) -> None:
        with self._lock:
            if self._lost:
                why = self._lost
            else:
                self._lost = why
                said = self._transport.kill()
                self._lost = f"{why}: {said}" if said else why
            for waker in self._wakers.values():
                waker.set()
