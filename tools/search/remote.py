"""A retriever on another machine that speaks the `/retrieve` schema of Search-R1.

`tools.search.server` is such a machine; so are the servers of Search-R1.
"""

from __future__ import annotations

import json
from functools import partial
from urllib.parse import urlsplit

from tools.cache import Answer, Cache, Request
from tools.search.retrievers import Hit, Retriever
from tools.tool import ToolUnavailable
from tools.web import Fault, Guard, Limits, Reply, ServiceClient, Traffic, failure

REMOTE_LIMITS = Limits()
"""A service of our own: not paced, 64 calls in flight."""


class RemoteRetriever:
    """Asks a retrieval service. Thread-safe; survives a fork. Mutated by its connections only."""

    def __init__(
        self, url: str, limits: Limits = REMOTE_LIMITS, max_bytes: int = 8 << 20, seed: int = 0
    ) -> None:
        """A client; nothing is opened yet.

        Args:
            url: of the service, `http://host:8000` or with its path.
            limits: pace, retries, deadline.
            max_bytes: of one response; a longer one is a fault.
            seed: draws the pauses between attempts.
        """
        service = url if urlsplit(url).path.strip("/") else url.rstrip("/") + "/retrieve"
        self._client, self._max_bytes = ServiceClient(service), max_bytes
        self._guard = Guard(limits, seed)

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` hits, as the service ranks them."""
        return self._guard.call(self._client.host, partial(self._ask, query, k))

    def traffic(self) -> Traffic:
        """Calls, attempts, faults and calls given up by this process."""
        return self._guard.traffic()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask(self, query: str, k: int, seconds: float) -> list[Hit]:
        # Search-R1 fails without return_scores, so it is always sent.
        wanted = {"queries": [query], "topk": k, "return_scores": True}
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        content = json.dumps(wanted).encode()
        reply = self._client.post(content, headers, seconds, self._max_bytes)
        fault = failure(reply)
        if fault is not None:
            raise fault
        return _hits(reply)[:k]


def _hits(reply: Reply) -> list[Hit]:
    if not reply.whole:
        raise Fault(f"the response is longer than {len(reply.body)} bytes")
    try:
        found = json.loads(reply.body)["result"][0]
        return [_hit(item) for item in found]
    except (ValueError, TypeError, KeyError, IndexError, RecursionError) as error:
        start = reply.body[:80]
        raise Fault(f"status {reply.status}, not the /retrieve schema: {start!r}") from error


def _hit(item: dict[str, object]) -> Hit:
    document, score = item.get("document", item), item.get("score", 0.0)
    if not isinstance(document, dict) or not isinstance(score, int | float):
        raise TypeError("neither a document nor a scored document")
    if "text" in document:
        return Hit(str(document.get("title", "")), str(document["text"]), float(score))
    title, _, text = str(document["contents"]).partition("\n")
    return Hit(title.strip().strip('"'), text, float(score))


class RecordedRetriever:
    """Asks a retriever what the cache does not hold. Mutated as its two parts are."""

    def __init__(
        self, retriever: Retriever, cache: Cache, source: str, empty_lasts_s: float | None = None
    ) -> None:
        """A retriever with a memory.

        Args:
            retriever: not used in the modes replay and frozen.
            cache: shared with other retrievers, if you like.
            source: tells their answers apart: the engine and every setting that changes them.
            empty_lasts_s: how long to believe that there is no hit; replays always believe it.
        """
        self._retriever, self._cache = retriever, cache
        self._source, self._empty_lasts_s = source, empty_lasts_s

    def search(self, query: str, k: int) -> list[Hit]:
        """The hits that were recorded, or are now.

        Raises:
            ReplayMiss: the cache replays, and does not hold the query.
            ToolUnavailable: the retriever or the cache is out of order.
        """
        request: Request = {"source": self._source, "query": query, "k": k}
        text = self._cache.answer(request, partial(self._ask, query, k))
        if text is None:
            return []
        try:
            return [Hit(title, body, score) for title, body, score in json.loads(text)]
        except (TypeError, ValueError) as error:
            raise ToolUnavailable(f"{self._cache.path}: no list of hits for {query!r}") from error

    def close(self) -> None:
        """Close both."""
        self._retriever.close()
        self._cache.close()

    def _ask(self, query: str, k: int) -> Answer:
        hits = self._retriever.search(query, k)
        return Answer(json.dumps(hits), None if hits else self._empty_lasts_s)
