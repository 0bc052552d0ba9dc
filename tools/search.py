"""The search tool: a query to a few passages, over any retriever."""

import time

from tools.page_text import cut, one_line
from tools.retrievers import Retriever
from tools.tool import ToolContext, ToolResult

LONGEST_QUERY = 2_000
"""Characters of a query that are looked at; a model that babbles must not slow the others."""


class SearchTool:
    """Searches for passages. Stateless, so that every fork shares it."""

    name = "search"
    description = "Searches for a query and returns the pages that match it best."

    def __init__(self, retriever: Retriever, results: int = 3, characters: int = 1000) -> None:
        """A search tool.

        Args:
            retriever: who finds the passages; nothing is opened before the first `run`.
            results: passages shown.
            characters: of one passage shown, title included.
        """
        if results < 1 or characters < 1:
            raise ValueError(
                f"results and characters must be at least 1, not {results} and {characters}"
            )
        self._retriever = retriever
        self._results = results
        self._characters = characters

    def initial_state(self, context: ToolContext) -> None:
        """None: what was searched before changes nothing."""
        return None

    def run(self, state: None, argument: str) -> tuple[None, ToolResult]:
        """Look the argument up.

        Raises:
            ToolUnavailable: the retriever is out of order.
        """
        start = time.perf_counter()
        text, ok = self._answer(argument)
        return None, ToolResult(text, ok, time.perf_counter() - start)

    def close(self) -> None:
        """Close the retriever."""
        self._retriever.close()

    def _answer(self, argument: str) -> tuple[str, bool]:
        query = " ".join(argument[:LONGEST_QUERY].split())
        if not query:
            return "The query is empty.", False
        hits = self._retriever.search(query, self._results)[: self._results]
        if not hits:
            return "No page matches the query.", False
        looked_at = 4 * self._characters  # markup may grow or shrink when it is made safe
        pages = (f"{hit.title[:looked_at]}. {hit.text[:looked_at]}" for hit in hits)
        shown = (cut(one_line(page), self._characters) for page in pages)
        return "\n".join(f"Page {n}: {page}" for n, page in enumerate(shown, start=1)), True
