"""HTTP requests with a hard deadline and size limit, against servers that hang, drip or flood."""

from __future__ import annotations

import ssl
import time
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, Generic, NamedTuple, Protocol, TypeVar

from tools.per_process import PerProcess
from tools.web.rate_limits import AttemptFailed
from tools.web.retries import WorkerThread

if TYPE_CHECKING:
    import httpx

_MAX_IDLE_CONNECTIONS = 64


class HttpResponse(NamedTuple):
    """A response, its body decompressed."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    complete: bool
    """False if the body is longer than the limit and was cut."""


class HttpClient:
    """Sends single requests; follows no redirect, keeps no cookie, ignores proxy variables.

    Thread-safe; each process has its own connections. Mutated by `send`, which keeps connections
    for reuse.
    """

    def __init__(self) -> None:
        self._pool = PerProcess(_open_pool)

    def send(
        self,
        method: str,
        url: str,
        *,
        seconds: float,
        max_bytes: int,
        headers: Mapping[str, str] | None = None,
        content: bytes | None = None,
        server_name: str | None = None,
    ) -> HttpResponse:
        """Send one request and return its response.

        Args:
            method: GET, POST and so on.
            url: absolute, http or https.
            seconds: for the request and the whole response.
            max_bytes: of the decompressed body.
            headers: to send.
            content: the request's body.
            server_name: the host of the expected certificate, if the URL has an IP address.

        Raises:
            AttemptFailed: there is no complete response. A status of 400 or more is a response.
        """
        import httpx

        if seconds <= 0:
            raise AttemptFailed("no time is left for a request")
        pool = self._pool.get()
        connection = pool.take()
        client, worker = connection
        request = client.build_request(
            method,
            url,
            headers={"Accept-Encoding": "gzip", **(headers or {})},
            content=content,
            timeout=httpx.Timeout(seconds),
            extensions={"sni_hostname": server_name} if server_name else {},
        )
        request.extensions.setdefault("timeout", httpx.Timeout(seconds).as_dict())
        deadline = time.monotonic() + seconds
        exchange = partial(_exchange, client, request, max_bytes, deadline)
        try:
            response = worker.run(seconds, exchange, client.close)
        except httpx.TransportError as error:
            connection.close()
            raise AttemptFailed(f"{type(error).__name__}: {error}") from error
        except BaseException:
            connection.close()
            raise
        if server_name is None:
            client.cookies.clear()
            pool.give_back(connection)
        else:
            # httpx finds open connections by address: another host name must not get this one.
            connection.close()
        return response

    def close(self) -> None:
        """Close this process's connections."""
        pool = self._pool.pop()
        if pool is not None:
            pool.close()


def failure_from_status(response: HttpResponse) -> AttemptFailed | None:
    """Return the failure that a status stands for; None if the server did its work."""
    if response.status < 400:
        return None
    retry = response.status in (408, 425, 429) or response.status >= 500
    after = _parse_retry_after(response.headers.get("retry-after"))
    return AttemptFailed(f"HTTP status {response.status}", retry, after if retry else None)


def read_body(
    chunks: Iterable[bytes], headers: Mapping[str, str], max_bytes: int, deadline: float
) -> tuple[bytes, bool]:
    """Read and decompress a body; return it and True if it is complete.

    Args:
        chunks: as they come from the network.
        headers: names in lower case.
        max_bytes: the rest is not read.
        deadline: by `time.monotonic`.

    Raises:
        AttemptFailed: the body is damaged, in an unknown encoding, or too slow.
    """
    body = bytearray()
    for chunk in _decompress(chunks, headers.get("content-encoding", ""), max_bytes):
        body += chunk
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), False
        if time.monotonic() > deadline:
            raise AttemptFailed("the response drips too slowly")
    return bytes(body), True


class Closable(Protocol):
    """Anything that can be closed."""

    def close(self) -> None: ...


C = TypeVar("C", bound=Closable)


class ConnectionPool(Generic[C]):
    """Idle connections, opened when there is none. Thread-safe; mutated by every method."""

    def __init__(self, open_connection: Callable[[], C]) -> None:
        self._idle: deque[C] = deque()
        self._open_connection = open_connection

    def take(self) -> C:
        """Return an idle connection, or open one."""
        try:
            return self._idle.pop()
        except IndexError:
            return self._open_connection()

    def give_back(self, connection: C) -> None:
        """Keep a connection for reuse; close it if enough are idle."""
        if len(self._idle) < _MAX_IDLE_CONNECTIONS:
            self._idle.append(connection)
        else:
            connection.close()

    def close(self) -> None:
        """Close all idle connections."""
        while self._idle:
            self._idle.pop().close()


class _Connection(NamedTuple):
    """A client and the thread that uses it."""

    client: httpx.Client
    worker: WorkerThread

    def close(self) -> None:
        self.worker.stop()
        self.client.close()


def _open_pool() -> ConnectionPool[_Connection]:
    import httpx

    # Reading the certificates takes 15 ms, so all connections share them.
    return ConnectionPool(partial(_open_connection, httpx.create_ssl_context()))


def _open_connection(certificates: ssl.SSLContext) -> _Connection:
    import httpx

    return _Connection(httpx.Client(verify=certificates, trust_env=False), WorkerThread())


def _exchange(
    client: httpx.Client, request: httpx.Request, max_bytes: int, deadline: float
) -> HttpResponse:
    response = client.send(request, stream=True, follow_redirects=False)
    try:
        headers = {name.lower(): value for name, value in response.headers.items()}
        body, complete = read_body(response.iter_raw(), headers, max_bytes, deadline)
        return HttpResponse(response.status_code, headers, body, complete)
    finally:
        response.close()


def _decompress(chunks: Iterable[bytes], encoding: str, max_bytes: int) -> Iterator[bytes]:
    """Yield the body in chunks of bounded size, so that a zip bomb never unfolds in memory."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from chunks
        return
    if encoding not in ("gzip", "x-gzip"):
        raise AttemptFailed(f"unknown content encoding {encoding[:40]!r}", retry=False)
    gzip = zlib.decompressobj(wbits=31)
    try:
        for chunk in chunks:
            yield gzip.decompress(chunk, max_bytes + 1)
            while gzip.unconsumed_tail:
                yield gzip.decompress(gzip.unconsumed_tail, max_bytes + 1)
    except zlib.error as error:
        raise AttemptFailed("the compressed body is damaged") from error
    if not gzip.eof:
        raise AttemptFailed("the compressed body ends early")


def _parse_retry_after(header: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, as a number or a date."""
    if header is None:
        return None
    if header.strip().isdecimal():
        return float(header)
    try:
        when = parsedate_to_datetime(header)
    except ValueError:
        return None
    when = when if when.tzinfo else when.replace(tzinfo=UTC)
    return max(0.0, (when - datetime.now(UTC)).total_seconds())
