"""The search tool: a query to a few passages, over any retriever."""

from __future__ import annotations

import time

from tools.cache import Cache
from tools.search.retrievers import Retriever
from tools.tool import ToolContext, ToolResult
from tools.web import cut, one_line

LONGEST_QUERY = 2_000
"""Characters of a query that are looked at; a model that babbles must not slow the others."""


class SearchTool:
    """Searches for passages. Stateless, so that every fork shares it."""

    name = "search"
    description = "Searches for a query and returns the pages that match it best."

    def __init__(
        self,
        retriever: Retriever,
        results: int = 3,
        characters: int = 1000,
        cache: Cache | None = None,
    ) -> None:
        """A search tool.

        Args:
            retriever: who finds the passages; nothing is opened before the first `run`.
            results: passages shown.
            characters: of one passage shown, title included.
            cache: what the retriever records in; it tells which answers were paid for.
        """
        if results < 1 or characters < 1:
            raise ValueError(
                f"results and characters must be at least 1, not {results} and {characters}"
            )
        self._retriever = retriever
        self._results = results
        self._characters = characters
        self._cache = cache

    def initial_state(self, context: ToolContext) -> None:
        """None: what was searched before changes nothing."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """Look the argument up.

        Raises:
            ToolUnavailable: the retriever is out of order.
            ReplayMiss: a cache replays, and does not hold the query.
        """
        start = time.perf_counter()
        asked = 0 if self._cache is None else self._cache.asked()
        query = " ".join(argument[:LONGEST_QUERY].split())
        text, ok = self._answer(query) if query else ("The query is empty.", False)
        free = not query or (self._cache is not None and self._cache.asked() == asked)
        return None, ToolResult(text, ok, time.perf_counter() - start, free)

    def close(self) -> None:
        """Close the retriever."""
        self._retriever.close()

    def _answer(self, query: str) -> tuple[str, bool]:
        hits = self._retriever.search(query, self._results)[: self._results]
        if not hits:
            return "No page matches the query.", False
        looked_at = 4 * self._characters  # markup may grow or shrink when it is made safe
        pages = (f"{hit.title[:looked_at]}. {hit.text[:looked_at]}" for hit in hits)
        shown = (cut(one_line(page), self._characters) for page in pages)
        return "\n".join(f"Page {n}: {page}" for n, page in enumerate(shown, start=1)), True
