"""Opens a retriever described by words that fit a command line or `gym.make`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tools.cache import Cache
from tools.extras import require
from tools.search.dense import DenseRetriever, is_dense
from tools.search.local_index import LocalRetriever, read_passages
from tools.search.remote import RecordedRetriever, RemoteRetriever
from tools.search.retrievers import HybridRetriever, MemoryRetriever, Retriever
from tools.search.web import EMPTY_TTL_S, WebRetriever

SearchKind = Literal["local", "remote", "web"]


def open_retriever(
    search: SearchKind,
    corpus: str | Path | None = None,
    cache: Cache | None = None,
    seed: int = 0,
) -> Retriever:
    """Return the retriever that the words name.

    Nothing is opened before its first search, except a file of passages, which is read right away.

    Args:
        search: passages on this disk, a `/retrieve` service, or the web.
        corpus: local: the folder of an index of words or of vectors, a small file of JSON lines,
            which is held in memory, or several of these separated by commas, whose rankings are
            fused; remote: the service's URL; web: one engine of ddgs, duckduckgo by default.
        cache: records the answers of remote and web.
        seed: draws the pauses between attempts.

    Raises:
        ValueError: the words do not go together.
        FileNotFoundError: there is no such file, or no index in the folder.
        ModuleNotFoundError: the web needs a package that is not installed.
    """
    if search == "local":
        if corpus is None or cache is not None:
            raise ValueError("search='local' takes passages as corpus, and no cache")
        return _open_local(corpus)
    if search == "remote":
        if corpus is None:
            raise ValueError("search='remote' takes the service's URL as corpus")
        remote = RemoteRetriever(str(corpus), seed=seed)
        return remote if cache is None else RecordedRetriever(remote, cache, "remote")
    if search == "web":
        if cache is None or cache.mode in ("live", "record"):
            require("web", "ddgs")
        web = WebRetriever("duckduckgo" if corpus is None else str(corpus), seed=seed)
        if cache is None:
            return web
        return RecordedRetriever(web, cache, web.source, EMPTY_TTL_S)
    raise ValueError(f"search={search!r} is none of {', '.join(get_args(SearchKind))}")


def _open_local(corpus: str | Path) -> Retriever:
    path = Path(corpus)
    names = str(corpus).split(",")
    if len(names) > 1 and not path.exists():
        return HybridRetriever([_open_local(name) for name in names])
    if path.is_file():
        return MemoryRetriever(read_passages(path))
    return DenseRetriever(path) if is_dense(path) else LocalRetriever(path)
