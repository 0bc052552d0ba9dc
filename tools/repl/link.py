"""The hub's end of a state's channel. It never waits for a state and never trusts what it sends.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import collections
import json
import os
import socket
import struct
from typing import Any

HubMessage = dict[str, Any]
"""A JSON message between the hub and a state, or its settings."""

MAX_MESSAGE_BYTES = 1 << 16
"""Longest message that a state may send; a longer one ends the state."""


class ChannelBroken(Exception):
    """The other end is gone or violates the protocol."""


class HubStopped(Exception):
    """The hub cannot go on, or has no client left."""


class Link:
    """Messages to and from one state; the kernel, not the state, names the sender."""

    def __init__(self) -> None:
        hub_end, self.state_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        hub_end.setblocking(False)
        hub_end.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket = hub_end
        self.inbox = b""
        self.outbox: collections.deque[tuple[bytes, tuple[int, ...]]] = collections.deque()
        self.sender = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: HubMessage, fds: tuple[int, ...] = ()) -> bool:
        """Queue a message and descriptors to hand over; True when nothing is left to write."""
        body = json.dumps(message).encode()
        self.outbox.append((struct.pack("!I", len(body)) + body, fds))
        return self.flush()

    def flush(self) -> bool:
        """Write what the socket takes; True when nothing is left."""
        try:
            while self.outbox:
                data, fds = self.outbox[0]
                if fds:
                    sent = socket.send_fds(self.socket, [data], list(fds))
                else:
                    sent = self.socket.send(data)
                for fd in fds:
                    os.close(fd)
                if sent < len(data):
                    self.outbox[0] = (data[sent:], ())
                else:
                    self.outbox.popleft()
        except BlockingIOError:
            return False
        except OSError as error:
            raise ChannelBroken(str(error)) from None
        return True

    def receive(self) -> list[HubMessage]:
        """Return the messages that are complete. Raises ChannelBroken at the end or at garbage."""
        try:
            data, ancillary, _flags, _address = self.socket.recvmsg(
                MAX_MESSAGE_BYTES, socket.CMSG_SPACE(12)
            )
        except BlockingIOError:
            return []
        except OSError as error:
            raise ChannelBroken(str(error)) from None
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self.sender = struct.unpack("3i", value[:12])[0]
        if not data:
            raise ChannelBroken("closed")
        self.inbox += data
        messages = []
        while len(self.inbox) >= 4:
            size = struct.unpack("!I", self.inbox[:4])[0]
            if size > MAX_MESSAGE_BYTES:
                raise ChannelBroken("message too long")
            if len(self.inbox) < 4 + size:
                break
            messages.append(_parse(self.inbox[4 : 4 + size]))
            self.inbox = self.inbox[4 + size :]
        return messages

    def close(self) -> None:
        """Close every descriptor, including those that were never sent."""
        self.socket.close()
        self.state_end.close()
        for _data, fds in self.outbox:
            for fd in fds:
                os.close(fd)
        self.outbox.clear()


def _parse(body: bytes) -> HubMessage:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise ChannelBroken("not a message") from None
    if not isinstance(message, dict):
        raise ChannelBroken("not a message")
    return message


class Output:
    """The output of a cell: its beginning and end are kept, the bytes between are counted."""

    def __init__(self, max_bytes: int) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self.writer, True)
        self.half = max_bytes // 2
        self.clear()

    def fileno(self) -> int:
        return self.reader

    def clear(self) -> None:
        self.head, self.tail, self.total = b"", b"", 0

    def read(self, max_bytes: int = 1 << 22) -> bool:
        """Read what is available, up to `max_bytes`; False when every writer is gone."""
        count = 0
        while count < max_bytes:
            try:
                data = os.read(self.reader, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            count += len(data)
            self.total += len(data)
            room = self.half - len(self.head)
            self.head += data[:room]
            if data[room:]:
                self.tail = (self.tail + data[max(room, 0) :])[-self.half :]
        return True

    def text(self) -> str:
        """Return all of the output, or both ends with a note of how much was left out."""
        missing = self.total - len(self.head) - len(self.tail)
        if not missing:
            return (self.head + self.tail).decode("utf-8", "replace")
        head = self.head.decode("utf-8", "replace")
        tail = self.tail.decode("utf-8", "replace")
        return f"{head}\n[... {missing} bytes of output left out ...]\n{tail}"

    def close(self) -> None:
        os.close(self.reader)
