"""HTTP with a hard deadline and a hard size, for servers that hang, drip, lie and never end."""

from __future__ import annotations

import ssl
import time
import zlib
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from tools.per_process import PerProcess
from tools.web.rate_limits import Fault
from tools.web.retries import Worker

if TYPE_CHECKING:
    import httpx


_LINES_KEPT = 64


class Reply(NamedTuple):
    """A response, its body unpacked."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes
    whole: bool
    """False: the body is longer than asked for and was cut."""


class HttpClient:
    """Sends single requests; follows no redirect, keeps no cookie, reads no proxy variable.

    Thread-safe; each process keeps its own connections. Mutated by `send`, which keeps lines for
    later.
    """

    def __init__(self) -> None:
        self._pool = PerProcess(_Pool)

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
    ) -> Reply:
        """The response to one request.

        Args:
            method: GET, POST and so on.
            url: absolute, http or https.
            seconds: in which everything must be done.
            max_bytes: of the decoded body.
            headers: to send.
            content: the request's body.
            server_name: whose certificate to expect, when the URL holds an address.

        Raises:
            Fault: there is no whole response. A status of 400 or more is a response.
        """
        import httpx

        if seconds <= 0:
            raise Fault("no time is left for a request")
        pool = self._pool.get()
        line = pool.take()
        request = line.client.build_request(
            method,
            url,
            headers={"Accept-Encoding": "gzip", **(headers or {})},
            content=content,
            timeout=httpx.Timeout(seconds),
            extensions={"sni_hostname": server_name} if server_name else {},
        )
        request.extensions.setdefault("timeout", httpx.Timeout(seconds).as_dict())
        end = time.monotonic() + seconds
        read = partial(_read, line.client, request, max_bytes, end)
        try:
            reply = line.worker.within(seconds, read, line.client.close)
        except httpx.TransportError as error:
            line.close()
            raise Fault(f"{type(error).__name__}: {error}") from error
        except BaseException:
            line.close()
            raise
        if server_name is None:
            pool.give_back(line)
        else:
            line.close()  # a connection is known by its address: another name must not find it
        return reply

    def close(self) -> None:
        """Close this process's connections."""
        pool = self._pool.pop()
        if pool is not None:
            pool.close()


def failure(reply: Reply) -> Fault | None:
    """The fault that a status stands for; None: the server did its work."""
    if reply.status < 400:
        return None
    retry = reply.status in (408, 425, 429) or reply.status >= 500
    after = _retry_after_s(reply.headers.get("retry-after"))
    return Fault(f"HTTP status {reply.status}", retry, after if retry else None)


class _Line(NamedTuple):
    """A client and the thread that uses it."""

    client: httpx.Client
    worker: Worker

    def close(self) -> None:
        self.worker.stop()
        self.client.close()


class _Pool:
    """Lines that nobody uses, and the certificates they share. Mutated by every method."""

    def __init__(self) -> None:
        self._free: deque[_Line] = deque()
        self._certificates: ssl.SSLContext | None = None

    def take(self) -> _Line:
        import httpx

        try:
            return self._free.pop()
        except IndexError:
            if self._certificates is None:  # reading them takes 15 ms
                self._certificates = httpx.create_ssl_context()
            return _Line(httpx.Client(verify=self._certificates, trust_env=False), Worker())

    def give_back(self, line: _Line) -> None:
        line.client.cookies.clear()
        if len(self._free) < _LINES_KEPT:
            self._free.append(line)
        else:
            line.close()

    def close(self) -> None:
        while self._free:
            self._free.pop().close()


def _read(client: httpx.Client, request: httpx.Request, max_bytes: int, end: float) -> Reply:
    response = client.send(request, stream=True, follow_redirects=False)
    try:
        headers = {name.lower(): value for name, value in response.headers.items()}
        body, whole = collected(response.iter_raw(), headers, max_bytes, end)
        return Reply(response.status_code, headers, body, whole)
    finally:
        response.close()


def collected(
    pieces: Iterable[bytes], headers: Mapping[str, str], max_bytes: int, end: float
) -> tuple[bytes, bool]:
    """The body that comes in pieces, unpacked, and whether it is whole.

    Args:
        pieces: as they come from the network.
        headers: names in lower case.
        max_bytes: after which the rest is not read.
        end: by `time.monotonic`.

    Raises:
        Fault: damaged, of an unknown encoding, or too slow.
    """
    body = bytearray()
    for piece in _decoded(pieces, headers.get("content-encoding", ""), max_bytes):
        body += piece
        if len(body) > max_bytes:
            return bytes(body[:max_bytes]), False
        if time.monotonic() > end:
            raise Fault("the response drips too slowly")
    return bytes(body), True


def _decoded(pieces: Iterable[bytes], encoding: str, max_bytes: int) -> Iterator[bytes]:
    """The body in pieces of bounded size, however well it was packed."""
    encoding = encoding.strip().lower()
    if encoding in ("", "identity"):
        yield from pieces
        return
    if encoding not in ("gzip", "x-gzip"):
        raise Fault(f"unknown content encoding {encoding[:40]!r}", retry=False)
    unpack = zlib.decompressobj(wbits=31)
    try:
        for packed in pieces:
            yield unpack.decompress(packed, max_bytes + 1)
            while unpack.unconsumed_tail:
                yield unpack.decompress(unpack.unconsumed_tail, max_bytes + 1)
    except zlib.error as error:
        raise Fault("the packed body is damaged") from error
    if not unpack.eof:
        raise Fault("the packed body ends early")


def _retry_after_s(header: str | None) -> float | None:
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
