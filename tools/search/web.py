"""Web search through ddgs: opt in, keep the rate low, and record the answers.

ddgs reads the pages of search engines, which may forbid it, and whose answers change from day to
day. Wrap it in `RecordedRetriever`, with `WebRetriever.source`, or no run can be repeated.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

from tools.per_process import PerProcess
from tools.search.retrievers import Hit
from tools.web import AttemptFailed, RequestLimits, Retrier, Traffic, call_with_timeout

SafeSearch = Literal["on", "moderate", "off"]
TimeLimit = Literal["d", "w", "m", "y"]

WEB_LIMITS = RequestLimits(
    per_second=1.0,
    max_in_flight=4,
    failure_threshold=4,
    cooldown_s=60.0,
    max_cooldown_s=1800.0,
)
"""For scraped engines; a block lasts minutes, so a call waits up to two for its turn."""

EMPTY_TTL_S = 600.0
"""Lifetime of a recorded answer without hits."""

_CONTROL_QUERY = "Wikipedia"
"""Searched if there is no hit: an engine that does not find this is blocked."""
_DDGS_TIMEOUT_S = 10
_MAX_STUCK_THREADS = 16


class WebQuery(NamedTuple):
    """One request to the engine."""

    query: str
    k: int
    backend: str
    region: str
    safesearch: SafeSearch
    timelimit: TimeLimit | None
    proxy: str | None


class WebRetriever:
    """Asks one search engine. Thread-safe; survives a fork. Mutated by its rate limiter only."""

    def __init__(
        self,
        backend: str = "duckduckgo",
        region: str = "us-en",
        safesearch: SafeSearch = "moderate",
        timelimit: TimeLimit | None = None,
        proxy: str | None = None,
        limits: RequestLimits = WEB_LIMITS,
        seed: int = 0,
        ask: Callable[[WebQuery], list[Hit]] | None = None,
        pace_folder: str | Path | None = None,
    ) -> None:
        """Prepare a retriever; nothing is opened yet.

        Args:
            backend: one engine of ddgs; several, or "auto", would change from call to call.
            region: country and language, as in us-en.
            safesearch: as the engine understands it.
            timelimit: pages of the last day, week, month or year only.
            proxy: a URL.
            limits: rate limit, retries and timeouts.
            seed: draws the pauses between attempts.
            ask: a client other than ddgs.
            pace_folder: processes that name the same folder share one rate limit.
        """
        if not re.fullmatch(r"[a-z]{2}-[a-z]{2}", region):
            raise ValueError(f"region {region!r} is not of the form us-en")
        if not re.fullmatch(r"[a-z]+", backend) or backend in ("auto", "all"):
            raise ValueError(f"backend {backend!r} is not the name of one engine")
        self._settings = WebQuery("", 0, backend, region, safesearch, timelimit, proxy)
        self._ask = ask or _ask_ddgs
        self._retrier = Retrier(limits, seed, pace_folder=pace_folder)
        self._threads = PerProcess(partial(threading.BoundedSemaphore, _MAX_STUCK_THREADS))

    @property
    def source(self) -> str:
        """Engine and settings, as `RecordedRetriever` needs them."""
        settings = self._settings
        return (
            f"web {settings.backend} {settings.region} {settings.safesearch} {settings.timelimit}"
        )

    def search(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` hits; none only if the engine finds other things.

        Raises:
            ToolUnavailable: blocked, timed out, or broken; ddgs cannot always tell which.
        """
        return self._retrier.call(self._settings.backend, partial(self._attempt, query, k))

    def traffic(self) -> Traffic:
        """Return how many calls and attempts this process made, and how many failed."""
        return self._retrier.traffic()

    def close(self) -> None:
        """Do nothing: no connection is kept open."""

    def _attempt(self, query: str, k: int, seconds: float) -> list[Hit]:
        request = self._settings._replace(query=query, k=k)
        hits = self._ask_with_timeout(request, seconds)
        control = request._replace(query=_CONTROL_QUERY)
        if not hits and not self._ask_with_timeout(control, seconds):
            raise AttemptFailed(f"{self._settings.backend} finds nothing at all: blocked, it seems")
        return hits[:k]

    def _ask_with_timeout(self, request: WebQuery, seconds: float) -> list[Hit]:
        """Send one request; a thread that does not return keeps its slot as long as it lives."""
        threads = self._threads.get()
        if not threads.acquire(blocking=False):
            raise AttemptFailed(f"{_MAX_STUCK_THREADS} requests are stuck")

        def ask() -> list[Hit]:
            try:
                return self._ask(request)
            finally:
                threads.release()

        return call_with_timeout(seconds, ask, lambda: None)


def _ask_ddgs(request: WebQuery) -> list[Hit]:
    """Ask ddgs; it returns no hits for a block, too."""
    from ddgs import DDGS
    from ddgs.engines import ENGINES
    from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

    if request.backend not in ENGINES["text"]:
        engines = ", ".join(sorted(ENGINES["text"]))
        raise ValueError(f"backend {request.backend!r} is none of ddgs: {engines}")
    try:
        # A new instance each time, because threads must not share one.
        pages = DDGS(proxy=request.proxy, timeout=_DDGS_TIMEOUT_S).text(
            request.query,
            region=request.region,
            safesearch=request.safesearch,
            timelimit=request.timelimit,
            max_results=request.k,
            backend=request.backend,
        )
    except RatelimitException as error:
        raise AttemptFailed(f"rate limit: {error}", retry_after_s=10.0) from error
    except TimeoutException as error:
        raise AttemptFailed(f"timed out: {error}") from error
    except DDGSException as error:
        if str(error).startswith("No results found"):
            return []
        raise AttemptFailed(f"ddgs: {error}"[:500]) from error
    return [
        Hit(str(page["title"]), str(page["body"]), 1 / rank)
        for rank, page in enumerate(pages, start=1)
    ]
