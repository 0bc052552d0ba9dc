"""Any retriever behind the record and replay cache."""

import json
from functools import partial

from tools.cache import Answer, Cache, Request
from tools.retrievers import Hit, Retriever
from tools.tool import ToolUnavailable


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
