"""The Retriever protocol, BM25 over passages in memory, and the fusion of several rankings.

Larger corpora live on disk (`tools.search.local_index`), on other machines (`tools.search.remote`)
or on the web (`tools.search.web`).
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TITLE_WEIGHT = 2
"""A term of the title counts as this many of the text."""
K1, B = 1.2, 0.75
"""Parameters of BM25, Lucene's defaults."""
RRF_K = 60
"""Constant of reciprocal rank fusion: the larger, the less the first rank is worth more than the
second."""

_CJK = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_TERM = re.compile(rf"[^\W_{_CJK}]+|[{_CJK}]+")
_IS_CJK = re.compile(rf"[{_CJK}]")
_ACCENTS = re.compile("[\u0300-\u036f]")
_STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be been between both but by did do does for from had has have he her"
        " his how if in into is it its no not of on or she such than that the their then there"
        " these they this to was were what when where which who whom whose why will with",
    )
)


class Hit(NamedTuple):
    """A passage that matches a query. Scores compare within one retriever; higher is better."""

    title: str
    text: str
    score: float


class PassageLike(Protocol):
    """Anything with a title and a text."""

    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...


class Retriever(Protocol):
    """Finds passages. Thread-safe, opens nothing before the first search, survives a fork."""

    def search(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` hits, best first; the same each time unless the outside changed.

        Raises:
            ToolUnavailable: the machinery failed; this says nothing about the query.
        """
        ...

    def close(self) -> None:
        """Release what was opened. A later `search` opens it again."""
        ...


class MemoryRetriever:
    """BM25 over passages in memory, for up to about 100,000 of them.

    Mutated by the first search, which builds the index. Two threads may both build it, to equal
    values: without a lock, none can be inherited locked by a forked child. Passages of equal score
    keep their order.
    """

    def __init__(self, passages: Iterable[PassageLike]) -> None:
        self._passages = tuple((passage.title, passage.text) for passage in passages)
        self._index: _Index | None = None

    def search(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` passages that share a term with the query, best first."""
        if self._index is None:
            self._index = _build_index(
                [passage_terms(title, text) for title, text in self._passages]
            )
        best = _rank(self._index, query_terms(query), k)
        return [Hit(*self._passages[number], score) for number, score in best]

    def close(self) -> None:
        """Drop the index; the passages stay."""
        self._index = None

    def __len__(self) -> int:
        return len(self._passages)


class HybridRetriever:
    """Fuses the rankings of several retrievers, whose scores do not compare.

    score(page) = sum over retrievers that found it of 1 / (60 + rank)
    """

    def __init__(self, retrievers: Sequence[Retriever], depth: int = 20) -> None:
        """Fuse retrievers.

        Args:
            retrievers: at least one; pages of equal score keep the order of their retrievers.
            depth: hits requested of each, if the caller wants fewer.
        """
        if not retrievers:
            raise ValueError("nothing to fuse: no retriever was given")
        self._retrievers, self._depth = tuple(retrievers), depth

    def search(self, query: str, k: int) -> list[Hit]:
        """Return at most `k` hits, best first.

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
                scores[page] = scores.get(page, 0.0) + 1 / (RRF_K + rank)
        best = sorted(scores.items(), key=lambda item: -item[1])[:k]  # stable
        return [Hit(title, text, score) for (title, text), score in best]

    def close(self) -> None:
        """Close all retrievers."""
        for retriever in self._retrievers:
            retriever.close()


def terms(text: str) -> list[str]:
    """Split a text into its terms, in order, with case and accents folded."""
    if text.isascii():
        return _TERM.findall(text.lower())
    text = unicodedata.normalize(
        "NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    ).casefold()
    words: list[str] = []
    for run in _TERM.findall(text):
        words.extend(_ngrams(run) if _IS_CJK.match(run) else [run])
    return words


def query_terms(text: str) -> list[str]:
    """Split a query into terms without stop words, unless it has nothing else ("The Who")."""
    words = terms(text)
    return [word for word in words if word not in _STOP_WORDS] or words


def passage_terms(title: str, text: str) -> list[str]:
    """Split a passage into its terms, those of the title repeated by their weight."""
    return terms(title) * TITLE_WEIGHT + terms(text)


def _ngrams(run: str) -> list[str]:
    """Return the characters of a Chinese or Japanese run, then its pairs of neighbours."""
    return [*run, *(run[i : i + 2] for i in range(len(run) - 1))]


class _Index(NamedTuple):
    """The score that each term gives each passage, sorted by term."""

    term_ids: dict[str, int]
    starts: list[int]  # postings of term i are [starts[i]:starts[i + 1]]
    passages: NDArray[np.int32]
    scores: NDArray[np.float32]
    size: int


def _build_index(documents: list[list[str]]) -> _Index:
    import bm25s

    term_ids: dict[str, int] = {}
    ids = [
        [term_ids.setdefault(term, len(term_ids)) for term in document] for document in documents
    ]
    if not term_ids:
        import numpy as np

        return _Index({}, [0], np.empty(0, np.int32), np.empty(0, np.float32), len(documents))
    bm25 = bm25s.BM25(method="lucene", k1=K1, b=B)
    bm25.index((ids, term_ids), show_progress=False)
    matrix = bm25.scores
    return _Index(
        term_ids, matrix["indptr"].tolist(), matrix["indices"], matrix["data"], len(documents)
    )


def _rank(index: _Index, words: list[str], k: int) -> list[tuple[int, float]]:
    """Return the numbers and scores of the `k` best passages."""
    import numpy as np

    ids = [index.term_ids[word] for word in words if word in index.term_ids]
    if not ids or k < 1:
        return []
    spans = [slice(index.starts[i], index.starts[i + 1]) for i in ids]
    totals = np.bincount(
        np.concatenate([index.passages[span] for span in spans]),
        weights=np.concatenate([index.scores[span] for span in spans]),
        minlength=index.size,
    )
    # Every passage as good as the k-th is a candidate, so that ties break by the passages' order.
    least = np.partition(totals, index.size - k)[index.size - k] if k < index.size else 0.0
    candidates = np.flatnonzero((totals >= least) & (totals > 0))
    order = np.lexsort((candidates, -totals[candidates]))[:k]
    return [(int(i), float(totals[i])) for i in candidates[order]]
