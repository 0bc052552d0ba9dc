"""Several retrievers as one, by reciprocal rank fusion."""

from collections.abc import Sequence

from tools.retrievers import Hit, Retriever

_DEPTH = 60
"""Ranks count as 1 / (this + rank): how little the first rank is worth more than the second."""


class HybridRetriever:
    """Asks every retriever and adds up ranks; scores of different retrievers do not compare.

    score(page) = sum over retrievers that found it of 1 / (60 + rank)
    """

    def __init__(self, retrievers: Sequence[Retriever], depth: int = 20) -> None:
        """A fusion.

        Args:
            retrievers: at least one; equal scores keep their order.
            depth: hits asked of each, if that is more than the caller wants.
        """
        if not retrievers:
            raise ValueError("nothing to fuse: no retriever was given")
        self._retrievers, self._depth = tuple(retrievers), depth

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` hits, best first.

        Raises:
            ToolUnavailable: one of the retrievers is out of order.
        """
        if k < 1:
            return []
        scores: dict[tuple[str, str], float] = {}
        for retriever in self._retrievers:
            hits = retriever.search(query, max(k, self._depth))
            for rank, hit in enumerate(hits, start=1):
                page = hit.title, hit.text
                scores[page] = scores.get(page, 0.0) + 1 / (_DEPTH + rank)
        best = sorted(scores.items(), key=lambda found: -found[1])[:k]  # stable
        return [Hit(title, text, score) for (title, text), score in best]

    def close(self) -> None:
        """Close all of them."""
        for retriever in self._retrievers:
            retriever.close()
