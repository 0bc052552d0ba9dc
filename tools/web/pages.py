"""Fetches pages that a model chose: public addresses only, robots respected, redirects judged."""

from __future__ import annotations

import ssl
import time
import urllib.robotparser
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit

from tools.per_process import PerProcess
from tools.web.addresses import Addresses, Refused
from tools.web.http_client import HttpClient, Reply, failure
from tools.web.rate_limits import Fault, Limits, Traffic
from tools.web.reader import Page, PageReader
from tools.web.retries import Guard

PAGE_LIMITS = Limits(per_second=1.0, burst=3, at_once=16, failures=4, rest_s=10.0)
"""Polite to each host, and quick to leave a dead one."""


AGENT = "appo-gym"


_REDIRECTS = 5


_LONGEST_URL = 2_000


_ROBOTS_BYTES = 500_000


_ROBOTS_KEPT = 1024


_ROBOTS_LAST_S = 3600.0


_LONGEST_CRAWL_DELAY_S = 30.0


_PORT = {"http": 80, "https": 443}


class Fetched(NamedTuple):
    """A page and the address it came from in the end."""

    url: str
    page: Page


class WebPages:
    """Gets pages from the web. Thread-safe; survives a fork.

    Mutated by its parts: connections, the pace of each host, and what robots.txt said. Sends no
    cookie, runs no script, fills no form, reads no proxy variable.
    """

    def __init__(
        self,
        addresses: Addresses = Addresses(),  # noqa: B008 - frozen
        robots: bool = True,
        limits: Limits = PAGE_LIMITS,
        max_bytes: int = 10 << 20,
        reader: PageReader | None = None,
        seed: int = 0,
        pace_folder: str | Path | None = None,
    ) -> None:
        """A client; nothing is opened yet.

        Args:
            addresses: which may be reached.
            robots: whether robots.txt is asked and respected.
            limits: pace, retries, deadline of each request.
            max_bytes: of a page; longer text is cut, a longer PDF refused.
            reader: of the bytes that come back.
            seed: draws the pauses between attempts.
            pace_folder: processes that name the same folder keep one pace together.
        """
        self._addresses, self._robots, self._max_bytes = addresses, robots, max_bytes
        self._reader = reader or PageReader()
        self._client = HttpClient()
        self._guard = Guard(limits, seed, pace_folder=pace_folder)
        self._rules = PerProcess(_rules)

    def fetch(self, url: str) -> Fetched:
        """The page at a URL, after at most five redirects.

        Raises:
            Refused: the page cannot be read because of what was asked; the message says why.
            ToolUnavailable: the host or the network is out of order.
        """
        here = tidy_url(url)
        for _ in range(_REDIRECTS + 1):
            if self._robots and not self._may_read(here):
                raise Refused("The site asks robots not to read this page.")
            reply = self._get(here, self._max_bytes)
            if reply.status not in (301, 302, 303, 307, 308):
                return Fetched(urlunsplit(here), self._page(reply, urlunsplit(here)))
            target = reply.headers.get("location", "")
            if not target:
                raise Refused("The page redirects to nowhere.")
            here = tidy_url(urljoin(urlunsplit(here), target))
        raise Refused(f"The page redirects more than {_REDIRECTS} times.")

    def traffic(self) -> Traffic:
        """Calls, attempts, faults and calls given up by this process."""
        return self._guard.traffic()

    def close(self) -> None:
        """Close connections and reading processes."""
        self._client.close()
        self._reader.close()
        self._rules.pop()

    def _page(self, reply: Reply, url: str) -> Page:
        fault = failure(reply)
        if fault is not None:
            raise Refused(f"The page is not there: status {reply.status}.")
        content_type = reply.headers.get("content-type", "")
        if not reply.whole and (b"%PDF-" in reply.body[:1024] or "pdf" in content_type):
            raise Refused(f"The document is longer than {self._max_bytes >> 20} MB.")
        return self._reader.read(reply.body, content_type, url)

    def _get(self, url: SplitResult, max_bytes: int) -> Reply:
        return self._guard.call(url.netloc, partial(self._attempt, url, max_bytes))

    def _attempt(self, url: SplitResult, max_bytes: int, seconds: float) -> Reply:
        """One request, to the very address that was judged."""
        assert url.hostname is not None
        start = time.monotonic()
        address = self._addresses.pinned(url.hostname, url.port or _PORT[url.scheme])
        place = f"[{address}]" if ":" in address else address
        port = f":{url.port}" if url.port else ""
        try:
            reply = self._client.send(
                "GET",
                urlunsplit(url._replace(netloc=place + port)),
                seconds=seconds - (time.monotonic() - start),
                max_bytes=max_bytes,
                headers={"Host": url.netloc, "User-Agent": AGENT, "Accept": "text/html, */*;q=0.5"},
                server_name=url.hostname if url.scheme == "https" else None,
            )
        except Fault as fault:
            _refuse_dead(fault, url.netloc)
            raise
        fault_told = failure(reply)
        if fault_told is not None and fault_told.retry:
            raise fault_told
        return reply

    def _may_read(self, url: SplitResult) -> bool:
        origin = urlunsplit((url.scheme, url.netloc, "", "", ""))
        kept = self._rules.get()
        known = kept.get(origin)
        if known is None or time.monotonic() - known.read_at > _ROBOTS_LAST_S:
            while len(kept) >= _ROBOTS_KEPT:
                kept.pop(next(iter(kept)), None)
            known = kept[origin] = _Rules(self._robots_of(origin), time.monotonic())
            delay = known.parser.crawl_delay(AGENT)
            if delay is not None:
                self._guard.slow_down(url.netloc, min(float(delay), _LONGEST_CRAWL_DELAY_S))
        return known.parser.can_fetch(AGENT, urlunsplit(url))

    def _robots_of(self, origin: str) -> urllib.robotparser.RobotFileParser:
        """The rules of a site; a file that is not there, or is elsewhere, forbids nothing."""
        reply = self._get(urlsplit(origin + "/robots.txt"), _ROBOTS_BYTES)
        lines = reply.body.decode("utf-8", "replace").splitlines() if reply.status == 200 else []
        parser = urllib.robotparser.RobotFileParser()
        parser.parse(lines)
        return parser


class _Rules(NamedTuple):
    parser: urllib.robotparser.RobotFileParser
    read_at: float


def _rules() -> dict[str, _Rules]:
    return {}


def tidy_url(url: str) -> SplitResult:
    """A URL as it is sent: no user, no fragment, the host in ASCII and lower case.

    Raises:
        Refused: it is no URL of a web page.
    """
    url = url.strip()
    if len(url) > _LONGEST_URL:
        raise Refused("The address is too long.")
    if "://" not in url[:12] and url.partition("/")[0].count("."):
        url = "https://" + url
    try:
        parts = urlsplit(url)
        port = parts.port
        host = (parts.hostname or "").encode("idna" if not url.isascii() else "ascii").decode()
    except (UnicodeError, ValueError) as error:
        raise Refused("This is no address of a web page.") from error
    if parts.scheme not in _PORT or not host or any(c.isspace() or c in "<>\"'" for c in host):
        raise Refused("This is no address of a web page.")
    netloc = f"[{host}]" if ":" in host else host
    netloc += f":{port}" if port not in (None, _PORT[parts.scheme]) else ""
    try:
        path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~-._")
        query = quote(parts.query, safe="/%:@!$&'()*+,;=~-._?")
    except UnicodeError as error:
        raise Refused("This is no address of a web page.") from error
    return SplitResult(parts.scheme, netloc, path, query, "")


def _refuse_dead(fault: Fault, host: str) -> None:
    """A host where nobody listens, or that is not who it says, is a property of the address."""
    error: BaseException | None = fault
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            raise Refused(f"Nobody answers at {host}.") from fault
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Refused(f"{host} has no valid certificate.") from fault
        error = error.__cause__ or error.__context__
