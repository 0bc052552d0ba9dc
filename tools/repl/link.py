"""The hub's end of what a state can say, read without ever waiting or believing.

Runs in any python3 on Linux with the standard library alone.
"""

from __future__ import annotations

import collections
import json
import os
import socket
import struct
from typing import Any

Message = dict[str, Any]


LARGEST = 1 << 16
"""Bytes of the longest message that a state may send; a longer one ends the state."""


class Broken(Exception):
    """The other end is gone or does not keep to the protocol."""


class Ended(Exception):
    """The hub cannot go on, or has nobody to go on for."""


class Link:
    """Messages to and from one state; the kernel, not the state, says who sent one."""

    def __init__(self) -> None:
        ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        ours.setblocking(False)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.socket = ours
        self.inbox = b""
        self.outbox: collections.deque[tuple[bytes, tuple[int, ...]]] = collections.deque()
        self.sender = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def send(self, message: Message, fds: tuple[int, ...] = ()) -> bool:
        """Queue a message, and descriptors to hand over; True when nothing is left to write."""
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
            raise Broken(str(error)) from None
        return True

    def receive(self) -> list[Message]:
        """The complete messages that are there; Broken at the end or at nonsense."""
        try:
            data, ancillary, _flags, _address = self.socket.recvmsg(LARGEST, socket.CMSG_SPACE(12))
        except BlockingIOError:
            return []
        except OSError as error:
            raise Broken(str(error)) from None
        for level, kind, value in ancillary:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                self.sender = struct.unpack("3i", value[:12])[0]
        if not data:
            raise Broken("closed")
        self.inbox += data
        found = []
        while len(self.inbox) >= 4:
            size = struct.unpack("!I", self.inbox[:4])[0]
            if size > LARGEST:
                raise Broken("message too long")
            if len(self.inbox) < 4 + size:
                break
            found.append(_parse(self.inbox[4 : 4 + size]))
            self.inbox = self.inbox[4 + size :]
        return found

    def close(self) -> None:
        """Give back every descriptor, those that were never sent too."""
        self.socket.close()
        self.theirs.close()
        for _data, fds in self.outbox:
            for fd in fds:
                os.close(fd)
        self.outbox.clear()


def _parse(body: bytes) -> Message:
    try:
        message = json.loads(body)
    except (ValueError, RecursionError):
        raise Broken("not a message") from None
    if not isinstance(message, dict):
        raise Broken("not a message")
    return message


class Output:
    """What a cell writes: the beginning and the end are kept, the middle is counted."""

    def __init__(self, most: int) -> None:
        self.reader, self.writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        os.set_blocking(self.writer, True)
        self.half = most // 2
        self.clear()

    def fileno(self) -> int:
        return self.reader

    def clear(self) -> None:
        self.head, self.tail, self.total = b"", b"", 0

    def read(self, most: int = 1 << 22) -> bool:
        """Take what is there, up to `most` bytes; False when every writer is gone."""
        taken = 0
        while taken < most:
            try:
                data = os.read(self.reader, 1 << 16)
            except BlockingIOError:
                return True
            if not data:
                return False
            taken += len(data)
            self.total += len(data)
            room = self.half - len(self.head)
            self.head += data[:room]
            if data[room:]:
                self.tail = (self.tail + data[max(room, 0) :])[-self.half :]
        return True

    def text(self) -> str:
        """What is shown: all of it, or both ends with a note of how much was left out."""
        missing = self.total - len(self.head) - len(self.tail)
        if not missing:
            return (self.head + self.tail).decode("utf-8", "replace")
        head = self.head.decode("utf-8", "replace")
        tail = self.tail.decode("utf-8", "replace")
        return f"{head}\n[... {missing} bytes of output left out ...]\n{tail}"

    def close(self) -> None:
        os.close(self.reader)
