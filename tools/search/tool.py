"""The search tool: from a query to a few passages, over any retriever."""

from __future__ import annotations

import time

from tools.cache import Cache
from tools.search.retrievers import Retriever
from tools.tool import ToolContext, ToolResult
from tools.web import sanitize_line, truncate

MAX_QUERY_CHARACTERS = 2_000
"""The rest of a query is ignored: a model that babbles must not slow down the others."""


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
        """Make a search tool.

        Args:
            retriever: finds the passages; nothing is opened before the first `run`.
            results: passages shown.
            characters: of one passage shown, title included.
            cache: the one that the retriever records in; it tells which answers were paid for.
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
        """Return None: earlier searches do not change a later one."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """Search for the argument.

        Raises:
            ToolUnavailable: the retriever is out of order.
            ReplayMiss: a cache is in replay mode and does not have the query.
        """
        start = time.perf_counter()
        fetches = 0 if self._cache is None else self._cache.fetches()
        query = " ".join(argument[:MAX_QUERY_CHARACTERS].split())
        text, ok = self._answer(query) if query else ("The query is empty.", False)
        free = not query or (self._cache is not None and self._cache.fetches() == fetches)
        return None, ToolResult(text, ok, time.perf_counter() - start, free)

    def close(self) -> None:
        """Close the retriever."""
        self._retriever.close()

    def _answer(self, query: str) -> tuple[str, bool]:
        hits = self._retriever.search(query, self._results)[: self._results]
        if not hits:
            return "No page matches the query.", False
        # Sanitizing may lengthen or shorten markup, so cut generously before it and exactly after.
        generous = 4 * self._characters
        passages = (f"{hit.title[:generous]}. {hit.text[:generous]}" for hit in hits)
        lines = (truncate(sanitize_line(passage), self._characters) for passage in passages)
        return "\n".join(f"Page {n}: {line}" for n, line in enumerate(lines, start=1)), True
