"""Web search through ddgs: opt in, keep the rate low, and record what it says.

ddgs reads the pages of search engines, which may forbid it, and changes from day to day. Wrap it in
`RecordedRetriever` with the source of `WebRetriever.source`, or no run can be repeated.
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
from tools.web import Fault, Guard, Limits, Traffic, within

SafeSearch = Literal["on", "moderate", "off"]


TimeLimit = Literal["d", "w", "m", "y"]


WEB_LIMITS = Limits(per_second=1.0, at_once=4, failures=4, rest_s=60.0, longest_rest_s=1800.0)
"""What scraped engines bear; a block lasts minutes, so a call waits up to two for its turn."""


EMPTY_LASTS_S = 600.0
"""How long to believe that the web knows nothing."""


_KNOWN_QUERY = "Wikipedia"
"""Asked when there is no hit: an engine that does not find this is blocked."""


_REQUEST_S = 10


_STUCK = 16


class Question(NamedTuple):
    """One request to the engine."""

    query: str
    k: int
    backend: str
    region: str
    safesearch: SafeSearch
    timelimit: TimeLimit | None
    proxy: str | None


class WebRetriever:
    """Asks one search engine. Thread-safe; survives a fork. Mutated by its pace only."""

    def __init__(
        self,
        backend: str = "duckduckgo",
        region: str = "us-en",
        safesearch: SafeSearch = "moderate",
        timelimit: TimeLimit | None = None,
        proxy: str | None = None,
        limits: Limits = WEB_LIMITS,
        seed: int = 0,
        ask: Callable[[Question], list[Hit]] | None = None,
        pace_folder: str | Path | None = None,
    ) -> None:
        """A retriever; nothing is opened yet.

        Args:
            backend: one engine of ddgs; several, or "auto", would change from call to call.
            region: country and language, as in us-en.
            safesearch: as the engine understands it.
            timelimit: pages of the last day, week, month or year only.
            proxy: a URL.
            limits: pace, retries, deadline.
            seed: draws the pauses between attempts.
            ask: another client than ddgs.
            pace_folder: processes that name the same folder keep one pace together.
        """
        if not re.fullmatch(r"[a-z]{2}-[a-z]{2}", region):
            raise ValueError(f"region {region!r} is not of the form us-en")
        if not re.fullmatch(r"[a-z]+", backend) or backend in ("auto", "all"):
            raise ValueError(f"backend {backend!r} is not the name of one engine")
        self._settings = Question("", 0, backend, region, safesearch, timelimit, proxy)
        self._ask = ask or _ask_ddgs
        self._guard = Guard(limits, seed, pace_folder=pace_folder)
        self._threads = PerProcess(partial(threading.BoundedSemaphore, _STUCK))

    @property
    def source(self) -> str:
        """Engine and settings, as `RecordedRetriever` wants them."""
        own = self._settings
        return f"web {own.backend} {own.region} {own.safesearch} {own.timelimit}"

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` hits. An empty answer is believed only of an engine that finds other things.

        Raises:
            ToolUnavailable: blocked, out of time, or broken; ddgs cannot always tell which.
        """
        return self._guard.call(self._settings.backend, partial(self._attempt, query, k))

    def traffic(self) -> Traffic:
        """Calls, attempts, faults and calls given up by this process."""
        return self._guard.traffic()

    def close(self) -> None:
        """Nothing is kept open."""

    def _attempt(self, query: str, k: int, seconds: float) -> list[Hit]:
        question = self._settings._replace(query=query, k=k)
        hits = self._bounded(question, seconds)
        if not hits and not self._bounded(question._replace(query=_KNOWN_QUERY), seconds):
            raise Fault(f"{self._settings.backend} finds nothing at all: blocked, it seems")
        return hits[:k]

    def _bounded(self, question: Question, seconds: float) -> list[Hit]:
        """One request; a thread that does not come back counts as long as it lives."""
        threads = self._threads.get()
        if not threads.acquire(blocking=False):
            raise Fault(f"{_STUCK} requests are stuck")

        def ask() -> list[Hit]:
            try:
                return self._ask(question)
            finally:
                threads.release()

        return within(seconds, ask, lambda: None)


def _ask_ddgs(question: Question) -> list[Hit]:
    """Empty when ddgs says so, which it does for a block, too."""
    from ddgs import DDGS
    from ddgs.engines import ENGINES
    from ddgs.exceptions import DDGSException, RatelimitException, TimeoutException

    if question.backend not in ENGINES["text"]:
        known = ", ".join(sorted(ENGINES["text"]))
        raise ValueError(f"backend {question.backend!r} is none of ddgs: {known}")
    try:
        # An instance is not safe to share between threads.
        found = DDGS(proxy=question.proxy, timeout=_REQUEST_S).text(
            question.query,
            region=question.region,
            safesearch=question.safesearch,
            timelimit=question.timelimit,
            max_results=question.k,
            backend=question.backend,
        )
    except RatelimitException as error:
        raise Fault(f"rate limit: {error}", retry_after_s=10.0) from error
    except TimeoutException as error:
        raise Fault(f"timed out: {error}") from error
    except DDGSException as error:
        if str(error).startswith("No results found"):
            return []
        raise Fault(f"ddgs: {error}"[:500]) from error
    return [
        Hit(str(page["title"]), str(page["body"]), 1 / rank)
        for rank, page in enumerate(found, start=1)
    ]
