"""Retrievers over a service that speaks Search-R1's `/retrieve`, and over recorded answers.

`tools.search.server` is such a service; so are the servers of Search-R1.
"""

from __future__ import annotations

import json
from functools import partial
from urllib.parse import urlsplit

from tools.cache import Answer, Cache, CacheRequest
from tools.search.local_index import split_contents
from tools.search.retrievers import Hit, Retriever
from tools.tool import ToolUnavailable
from tools.web import (
    AttemptFailed,
    HttpResponse,
    RequestLimits,
    Retrier,
    ServiceClient,
    Traffic,
    failure_from_status,
)

REMOTE_LIMITS = RequestLimits()
"""For a service of our own: no rate limit, 64 calls in flight."""


class RemoteRetriever:
    """Asks a retrieval service. Thread-safe; survives a fork. Mutated by its connections only."""

    def __init__(
        self,
        url: str,
        limits: RequestLimits = REMOTE_LIMITS,
        max_bytes: int = 8 << 20,
        seed: int = 0,
    ) -> None:
        """Prepare a client; nothing is opened yet.

        Args:
            url: of the service, `http://host:8000` or with its path.
            limits: rate limit, retries and timeouts.
            max_bytes: of one response; a longer one is a failed attempt.
            seed: draws the pauses between attempts.
        """
        service = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/retrieve"
        self._client, self._max_bytes = ServiceClient(service), max_bytes
        self._retrier = Retrier(limits, seed)

    def search(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` hits, as the service ranks them."""
        return self._retrier.call(self._client.host, partial(self._attempt, query, k))

    def traffic(self) -> Traffic:
        """Return how many calls and attempts this process made, and how many failed."""
        return self._retrier.traffic()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _attempt(self, query: str, k: int, seconds: float) -> list[Hit]:
        # Search-R1 fails without return_scores, so it is always sent.
        request = {"queries": [query], "topk": k, "return_scores": True}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        content = json.dumps(request).encode()
        response = self._client.post(content, headers, seconds, self._max_bytes)
        failure = failure_from_status(response)
        if failure is not None:
            raise failure
        return _parse_hits(response)[:k]


class RecordedRetriever:
    """Asks a retriever for what the cache does not have. Mutated as its two parts are."""

    def __init__(
        self, retriever: Retriever, cache: Cache, source: str, empty_ttl_s: float | None = None
    ) -> None:
        """Put a cache before a retriever.

        Args:
            retriever: not used in the modes replay and frozen.
            cache: may be shared with other retrievers.
            source: tells their answers apart: the engine and every setting that changes them.
            empty_ttl_s: lifetime of an answer without hits; None: unlimited. Replays ignore it.
        """
        self._retriever, self._cache = retriever, cache
        self._source, self._empty_ttl_s = source, empty_ttl_s

    def search(self, query: str, k: int) -> list[Hit]:
        """Return the recorded hits, or search and record them.

        Raises:
            ReplayMiss: the cache is in replay mode and does not have the query.
            ToolUnavailable: the retriever or the cache is out of order.
        """
        request: CacheRequest = {"source": self._source, "query": query, "k": k}
        text = self._cache.answer(request, partial(self._fetch, query, k))
        if text is None:
            return []
        try:
            return [Hit(title, body, score) for title, body, score in json.loads(text)]
        except (TypeError, ValueError) as error:
            raise ToolUnavailable(f"{self._cache.path}: no list of hits for {query!r}") from error

    def close(self) -> None:
        """Close the retriever and the cache."""
        self._retriever.close()
        self._cache.close()

    def _fetch(self, query: str, k: int) -> Answer:
        hits = self._retriever.search(query, k)
        return Answer(json.dumps(hits), None if hits else self._empty_ttl_s)


def _parse_hits(response: HttpResponse) -> list[Hit]:
    if not response.complete:
        raise AttemptFailed(f"the response is longer than {len(response.body)} bytes")
    try:
        return [_parse_hit(item) for item in json.loads(response.body)["result"][0]]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        start = response.body[:80]
        raise AttemptFailed(
            f"status {response.status}, not the /retrieve schema: {start!r}"
        ) from error


def _parse_hit(item: dict[str, object]) -> Hit:
    """Read a document, bare or with its score, in either spelling of its text."""
    document, score = item.get("document", item), item.get("score", 0.0)
    if not isinstance(document, dict) or not isinstance(score, int | float):
        raise TypeError("neither a document nor a scored document")
    if "text" in document:
        return Hit(str(document.get("title", "")), str(document["text"]), float(score))
    return Hit(*split_contents(str(document["contents"])), float(score))
