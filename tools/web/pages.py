"""Fetches pages that a model chose: public addresses only, robots respected, redirects checked."""

from __future__ import annotations

import ssl
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit, urlunsplit
from urllib.robotparser import RobotFileParser

from tools.per_process import PerProcess
from tools.web.addresses import AddressPolicy, Refused
from tools.web.http_client import HttpClient, HttpResponse, failure_from_status
from tools.web.rate_limits import AttemptFailed, RequestLimits, Traffic
from tools.web.reader import Page, PageReader
from tools.web.retries import Retrier

PAGE_LIMITS = RequestLimits(
    per_second=1.0, burst=3, max_in_flight=16, failure_threshold=4, cooldown_s=10.0
)
"""Polite to each host, and quick to give up on a dead one."""

AGENT = "appo-gym"
"""The User-Agent, also the name that robots.txt is asked about."""

_MAX_REDIRECTS = 5
_MAX_URL_CHARACTERS = 2_000
_MAX_ROBOTS_BYTES = 500_000
_MAX_ROBOTS_FILES = 1024
_ROBOTS_TTL_S = 3600.0
_MAX_CRAWL_DELAY_S = 30.0
_PORT = {"http": 80, "https": 443}


class FetchedPage(NamedTuple):
    """A page and the address that it came from after all redirects."""

    url: str
    page: Page


class WebPages:
    """Gets pages from the web. Thread-safe; survives a fork.

    Mutated by its parts: connections, each host's rate limit, and cached robots.txt files. Sends no
    cookie, runs no script, fills in no form, ignores proxy variables.
    """

    def __init__(
        self,
        addresses: AddressPolicy = AddressPolicy(),  # noqa: B008 - frozen
        robots: bool = True,
        limits: RequestLimits = PAGE_LIMITS,
        max_bytes: int = 10 << 20,
        reader: PageReader | None = None,
        seed: int = 0,
        pace_folder: str | Path | None = None,
    ) -> None:
        """Prepare a client; nothing is opened yet.

        Args:
            addresses: which may be reached.
            robots: True to fetch and respect robots.txt.
            limits: rate limit, retries and timeouts of requests.
            max_bytes: of a page; longer text is cut, a longer PDF refused.
            reader: extracts text from the bytes that come back.
            seed: draws the pauses between attempts.
            pace_folder: processes that name the same folder share one rate limit per host.
        """
        self._addresses, self._robots, self._max_bytes = addresses, robots, max_bytes
        self._reader = reader or PageReader()
        self._client = HttpClient()
        self._retrier = Retrier(limits, seed, pace_folder=pace_folder)
        self._rules = PerProcess(dict[str, _Rules])

    def fetch(self, url: str) -> FetchedPage:
        """Fetch the page at a URL, after at most five redirects.

        Raises:
            Refused: the page cannot be read because of the request itself; the message says why.
            ToolUnavailable: the host or the network is out of order.
        """
        current = normalize_url(url)
        for _ in range(_MAX_REDIRECTS + 1):
            if self._robots and not self._may_read(current):
                raise Refused("The site asks robots not to read this page.")
            response = self._get(current, self._max_bytes)
            if response.status not in (301, 302, 303, 307, 308):
                final = urlunsplit(current)
                return FetchedPage(final, self._read(response, final))
            target = response.headers.get("location", "")
            if not target:
                raise Refused("The page redirects to nowhere.")
            current = normalize_url(urljoin(urlunsplit(current), target))
        raise Refused(f"The page redirects more than {_MAX_REDIRECTS} times.")

    def traffic(self) -> Traffic:
        """Return how many calls and attempts this process made, and how many failed."""
        return self._retrier.traffic()

    def close(self) -> None:
        """Close connections and reading processes."""
        self._client.close()
        self._reader.close()
        self._rules.pop()

    def _read(self, response: HttpResponse, url: str) -> Page:
        if failure_from_status(response) is not None:
            raise Refused(f"The page is not there: status {response.status}.")
        content_type = response.headers.get("content-type", "")
        is_pdf = b"%PDF-" in response.body[:1024] or "pdf" in content_type
        if not response.complete and is_pdf:
            raise Refused(f"The document is longer than {self._max_bytes >> 20} MB.")
        return self._reader.read(response.body, content_type, url)

    def _get(self, url: SplitResult, max_bytes: int) -> HttpResponse:
        return self._retrier.call(url.netloc, partial(self._attempt, url, max_bytes))

    def _attempt(self, url: SplitResult, max_bytes: int, seconds: float) -> HttpResponse:
        """Send one request, to the very address that was checked."""
        assert url.hostname is not None
        start = time.monotonic()
        address = self._addresses.resolve(url.hostname, url.port or _PORT[url.scheme])
        host = f"[{address}]" if ":" in address else address
        port = f":{url.port}" if url.port else ""
        try:
            response = self._client.send(
                "GET",
                urlunsplit(url._replace(netloc=host + port)),
                seconds=seconds - (time.monotonic() - start),
                max_bytes=max_bytes,
                headers={"Host": url.netloc, "User-Agent": AGENT, "Accept": "text/html, */*;q=0.5"},
                server_name=url.hostname if url.scheme == "https" else None,
            )
        except AttemptFailed as failure:
            _refuse_dead_host(failure, url.netloc)
            raise
        bad_status = failure_from_status(response)
        if bad_status is not None and bad_status.retry:
            raise bad_status
        return response

    def _may_read(self, url: SplitResult) -> bool:
        origin = urlunsplit((url.scheme, url.netloc, "", "", ""))
        cached = self._rules.get()
        rules = cached.get(origin)
        if rules is None or time.monotonic() - rules.read_at > _ROBOTS_TTL_S:
            while len(cached) >= _MAX_ROBOTS_FILES:
                cached.pop(next(iter(cached)), None)
            rules = cached[origin] = _Rules(self._fetch_robots(origin), time.monotonic())
            delay = rules.parser.crawl_delay(AGENT)
            if delay is not None:
                self._retrier.slow_down(url.netloc, min(float(delay), _MAX_CRAWL_DELAY_S))
        return rules.parser.can_fetch(AGENT, urlunsplit(url))

    def _fetch_robots(self, origin: str) -> RobotFileParser:
        """Fetch the rules of a site; a file that is missing, or redirected, forbids nothing."""
        response = self._get(urlsplit(origin + "/robots.txt"), _MAX_ROBOTS_BYTES)
        text = response.body.decode("utf-8", "replace") if response.status == 200 else ""
        parser = RobotFileParser()
        parser.parse(text.splitlines())
        return parser


class _Rules(NamedTuple):
    parser: RobotFileParser
    read_at: float


def normalize_url(url: str) -> SplitResult:
    """Parse a URL into the form that is sent: no user, no fragment, the host in lower-case ASCII.

    Raises:
        Refused: it is not the URL of a web page.
    """
    url = url.strip()
    if len(url) > _MAX_URL_CHARACTERS:
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


def _refuse_dead_host(failure: AttemptFailed, host: str) -> None:
    """Raise Refused if nothing listens at a host or its certificate is invalid.

    Retrying would not help: this is the fault of the address that the model chose.
    """
    error: BaseException | None = failure
    while error is not None:
        if isinstance(error, ConnectionRefusedError):
            raise Refused(f"Nobody answers at {host}.") from failure
        if isinstance(error, ssl.SSLCertVerificationError):
            raise Refused(f"{host} has no valid certificate.") from failure
        error = error.__cause__ or error.__context__
