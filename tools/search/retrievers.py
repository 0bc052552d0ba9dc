"""What a search tool asks for passages, and the smallest answer: BM25 over passages held in memory.

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
"""A term in the title counts like this many in the text."""


K1, B = 1.2, 0.75
"""Parameters of BM25, Lucene's defaults."""


class Hit(NamedTuple):
    """A passage that a query found. Scores are higher for better, within one retriever only."""

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
        """At most `k` hits, best first; the same each time unless the outside world changed.

        Raises:
            ToolUnavailable: the machinery failed; nothing about the query is known.
        """
        ...

    def close(self) -> None:
        """Release what was opened. A later `search` opens it again."""
        ...


class MemoryRetriever:
    """BM25 over passages in memory, for up to about 100,000 of them.

    Mutated by the first search, which builds the index. Two threads may both build it, to equal
    values: no lock can be left held in a forked child. Equal scores keep the passages' order.
    """

    def __init__(self, passages: Iterable[PassageLike]) -> None:
        self._passages = tuple((passage.title, passage.text) for passage in passages)
        self._index: _Index | None = None

    def search(self, query: str, k: int) -> list[Hit]:
        """At most `k` passages that share a term with the query, best first."""
        if self._index is None:
            self._index = _index([_weighted(title, text) for title, text in self._passages])
        return [
            Hit(*self._passages[i], score) for i, score in _best(self._index, query_terms(query), k)
        ]

    def close(self) -> None:
        """Drop the index; the passages stay."""
        self._index = None

    def __len__(self) -> int:
        return len(self._passages)


class _Index(NamedTuple):
    """The score that each term gives each passage, sorted by term."""

    term_ids: dict[str, int]
    starts: list[int]  # postings of term i are [starts[i]:starts[i + 1]]
    passages: NDArray[np.int32]
    scores: NDArray[np.float32]
    size: int


def _weighted(title: str, text: str) -> list[str]:
    return terms(title) * TITLE_WEIGHT + terms(text)


def _index(documents: list[list[str]]) -> _Index:
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


def _best(index: _Index, words: list[str], k: int) -> list[tuple[int, float]]:
    import numpy as np

    found = [index.term_ids[word] for word in words if word in index.term_ids]
    if not found or k < 1:
        return []
    spans = [slice(index.starts[i], index.starts[i + 1]) for i in found]
    totals = np.bincount(
        np.concatenate([index.passages[span] for span in spans]),
        weights=np.concatenate([index.scores[span] for span in spans]),
        minlength=index.size,
    )
    least = np.partition(totals, index.size - k)[index.size - k] if k < index.size else 0.0
    candidates = np.flatnonzero((totals >= least) & (totals > 0))
    order = np.lexsort((candidates, -totals[candidates]))[:k]
    return [(int(i), float(totals[i])) for i in candidates[order]]


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


def terms(text: str) -> list[str]:
    """Every term of a text, in order, case and accents folded."""
    if text.isascii():
        return _TERM.findall(text.lower())
    text = unicodedata.normalize(
        "NFC", _ACCENTS.sub("", unicodedata.normalize("NFKD", text))
    ).casefold()
    found: list[str] = []
    for run in _TERM.findall(text):
        found.append(run) if not _IS_CJK.match(run) else found.extend(_grams(run))
    return found


def query_terms(text: str) -> list[str]:
    """The terms worth looking up: without stop words, unless there is nothing else ("The Who")."""
    every = terms(text)
    return [term for term in every if term not in _STOP_WORDS] or every


def _grams(run: str) -> list[str]:
    return [*run, *(run[i : i + 2] for i in range(len(run) - 1))]
