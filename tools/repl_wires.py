"""The hub's wires: requests on descriptor 0, answers on descriptor 1, and what every state may say.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import struct
import time
from collections.abc import Callable

from tools.repl_jobs import Job, Live
from tools.repl_link import Ended, Message

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
