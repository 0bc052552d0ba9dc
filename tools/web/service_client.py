"""HTTP to one service of our own, thousands of times, over kept-alive connections.

It uses the standard library's client: httpx takes six times the processor time for a request this
small, which 64 episodes that share an interpreter feel. Pages of strangers are fetched with
`tools.web.http_client`.
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import time
from collections.abc import Iterator, Mapping
from functools import partial
from typing import NamedTuple
from urllib.parse import urlsplit

from tools.per_process import PerProcess
from tools.web.http_client import ConnectionPool, HttpResponse, read_body
from tools.web.rate_limits import AttemptFailed
from tools.web.retries import WorkerThread

_CHUNK_BYTES = 1 << 16


class ServiceClient:
    """Posts to one URL. Thread-safe; each process has its own connections.

    Mutated by `post`, which keeps connections for reuse.
    """

    def __init__(self, url: str) -> None:
        """Parse the URL; nothing is opened yet.

        Raises:
            ValueError: it is not an http or https URL.
        """
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"{url!r} is no http or https address of a retrieval service")
        self.host = parts.netloc.rpartition("@")[2]
        self._path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self._pool = PerProcess(partial(_open_pool, parts.scheme, parts.hostname, parts.port))

    def post(
        self, content: bytes, headers: Mapping[str, str], seconds: float, max_bytes: int
    ) -> HttpResponse:
        """Post a body and return the response.

        Args:
            content: the body.
            headers: to send.
            seconds: for the request and the whole response.
            max_bytes: of the response, decompressed.

        Raises:
            AttemptFailed: there is no complete response. A status of 400 or more is a response.
        """
        if seconds <= 0:
            raise AttemptFailed("no time is left for a request")
        pool = self._pool.get()
        connection = pool.take()
        exchange = partial(connection.exchange, self._path, content, headers, seconds, max_bytes)
        try:
            response = connection.worker.run(seconds, exchange, connection.interrupt)
        except (OSError, http.client.HTTPException, ValueError) as error:
            connection.close()
            raise AttemptFailed(f"{type(error).__name__}: {error}"[:300]) from error
        except BaseException:
            connection.close()
            raise
        pool.give_back(connection)
        return response

    def close(self) -> None:
        """Close this process's connections."""
        pool = self._pool.pop()
        if pool is not None:
            pool.close()


class _Connection(NamedTuple):
    """A connection and the thread that uses it."""

    connection: http.client.HTTPConnection
    worker: WorkerThread

    def exchange(
        self,
        path: str,
        content: bytes,
        headers: Mapping[str, str],
        seconds: float,
        max_bytes: int,
    ) -> HttpResponse:
        deadline, connection = time.monotonic() + seconds, self.connection
        if connection.sock is not None and _has_hung_up(connection.sock):
            connection.close()
        connection.timeout = seconds
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        connection.request("POST", path, content, dict(headers))
        with connection.getresponse() as response:
            received = {name.lower(): value for name, value in response.getheaders()}
            length = received.get("content-length", "0").strip()
            if not length.isdecimal():
                raise AttemptFailed(f"the response is {length[:40]!r} bytes long")
            body, complete = read_body(_read_chunks(response), received, max_bytes, deadline)
            if not complete:
                connection.close()
            return HttpResponse(response.status, received, body, complete)

    def interrupt(self) -> None:
        """Wake the worker, which waits for the server."""
        sock = self.connection.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                return  # it was no longer connected

    def close(self) -> None:
        self.worker.stop()
        self.connection.close()


def _open_pool(scheme: str, host: str, port: int | None) -> ConnectionPool[_Connection]:
    certificates = ssl.create_default_context() if scheme == "https" else None
    return ConnectionPool(partial(_open_connection, host, port, certificates))


def _open_connection(
    host: str, port: int | None, certificates: ssl.SSLContext | None
) -> _Connection:
    if certificates is None:
        return _Connection(http.client.HTTPConnection(host, port), WorkerThread())
    secure = http.client.HTTPSConnection(host, port, context=certificates)
    return _Connection(secure, WorkerThread())


def _read_chunks(response: http.client.HTTPResponse) -> Iterator[bytes]:
    while chunk := response.read1(_CHUNK_BYTES):
        yield chunk
    if response.length:
        raise AttemptFailed(f"the response ends {response.length} bytes early")


def _has_hung_up(sock: socket.socket) -> bool:
    """Return True if an idle connection has something to read, which can only be its end."""
    watch = select.poll()
    watch.register(sock, select.POLLIN)
    return bool(watch.poll(0))
