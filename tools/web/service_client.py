"""HTTP to one service of our own, thousands of times: the standard library's client, kept open.

httpx takes six times the processor time for a request this small, which 64 episodes that share an
interpreter feel. Pages of strangers are fetched with `tools.web.http_client`.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

from tools.per_process import PerProcess
from tools.web.http_client import Reply, collected
from tools.web.rate_limits import Fault
from tools.web.retries import Worker

_LINES_KEPT = 64


_PIECE = 1 << 16


class ServiceClient:
    """Posts to one URL. Thread-safe; each process keeps its own connections.

    Mutated by `post`, which keeps connections for later.
    """

    def __init__(self, url: str) -> None:
        """A client; nothing is opened yet.

        Raises:
            ValueError: it is no http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https address of a retrieval service")
        self.host = parts.netloc.rpartition("@")[2]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._pool = PerProcess(partial(_Pool, parts.scheme, parts.hostname, parts.port))

    def post(
        self, content: bytes, headers: Mapping[str, str], seconds: float, max_bytes: int
    ) -> Reply:
        """The response to a body.

        Args:
            content: the body.
            headers: to send.
            seconds: in which everything must be done.
            max_bytes: of the response, unpacked.

        Raises:
            Fault: there is no whole response. A status of 400 or more is a response.
        """
        if seconds <= 0:
            raise Fault("no time is left for a request")
        pool = self._pool.get()
        line = pool.take()
        ask = partial(line.exchange, self._path, content, headers, seconds, max_bytes)
        try:
            reply = line.worker.within(seconds, ask, line.cut)
        except (OSError, http.client.HTTPException, ValueError) as error:
            line.close()
            raise Fault(f"{type(error).__name__}: {error}"[:300]) from error
        except BaseException:
            line.close()
            raise
        pool.give_back(line)
        return reply

    def close(self) -> None:
        """Close this process's connections."""
        pool = self._pool.pop()
        while pool is not None and pool.free:
            pool.free.pop().close()


class _Line(NamedTuple):
    """A connection and the thread that uses it."""

    connection: http.client.HTTPConnection
    worker: Worker

    def exchange(
        self,
        path: str,
        content: bytes,
        headers: Mapping[str, str],
        seconds: float,
        max_bytes: int,
    ) -> Reply:
        end, connection = time.monotonic() + seconds, self.connection
        if connection.sock is not None and _hung_up(connection.sock):
            connection.close()
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        connection.request("POST", path, content, dict(headers))
        with connection.getresponse() as response:
            told = {name.lower(): value for name, value in response.getheaders()}
            length = told.get("content-length", "0").strip()
            if not length.isdecimal():
                raise Fault(f"the response is {length[:40]!r} bytes long")
            body, whole = collected(_pieces(response), told, max_bytes, end)
            if not whole:
                connection.close()
            return Reply(response.status, told, body, whole)

    def cut(self) -> None:
        """Wake the thread that waits for the other side."""
        sock = self.connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it was not connected any more

    def close(self) -> None:
        self.worker.stop()
        self.connection.close()


class _Pool:
    """Connections that nobody uses. Mutated by `take` and `give_back`."""

    def __init__(self, scheme: str, host: str, port: int | None) -> None:
        self.free: deque[_Line] = deque()
        self._host, self._port = host, port
        self._certificates = ssl.create_default_context() if scheme == "https" else None

    def take(self) -> _Line:
        try:
            return self.free.pop()
        except IndexError:
            pass
        if self._certificates is None:
            return _Line(http.client.HTTPConnection(self._host, self._port), Worker())
        secure = http.client.HTTPSConnection(self._host, self._port, context=self._certificates)
        return _Line(secure, Worker())

    def give_back(self, line: _Line) -> None:
        if len(self.free) < _LINES_KEPT:
            self.free.append(line)
        else:
            line.close()


def _pieces(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while piece := response.read1(_PIECE):
        yield piece
    if response.length:
        raise Fault(f"the response ends {response.length} bytes early")


def _hung_up(sock: socket.socket) -> bool:
    """Whether an idle connection has something to say, which can only be its end."""
    watch = select.poll()
    watch.register(sock, select.POLLIN)
    return bool(watch.poll(0))
