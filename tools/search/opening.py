"""A retriever from words that fit a command line or `gym.make`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, get_args

from tools.cache import Cache
from tools.extras import require
from tools.search.dense import DenseRetriever, is_dense
from tools.search.local_index import LocalRetriever, read_passages
from tools.search.remote import RecordedRetriever, RemoteRetriever
from tools.search.retrievers import HybridRetriever, MemoryRetriever, Retriever
from tools.search.web import EMPTY_LASTS_S, WebRetriever

Kind = Literal["local", "remote", "web"]


def open_retriever(
    search: Kind,
    corpus: str | Path | None = None,
    cache: Cache | None = None,
    seed: int = 0,
) -> Retriever:
    """The retriever that the words name.

    Nothing is opened before its first search, but a file of passages, which is read at once.

    Args:
        search: passages on this disk, a `/retrieve` service, or the web.
        corpus: local: the folder of an index of words or of vectors, a small file of JSON lines,
            held in memory, or several of these with commas between, whose ranks are fused;
            remote: the service's URL; web: one engine of ddgs, duckduckgo by default.
        cache: records what remote and web say.
        seed: draws the pauses between attempts.

    Raises:
        ValueError: the words do not go together.
        FileNotFoundError: there is no such file, or no index in the folder.
        ModuleNotFoundError: the web needs a package that is not installed.
    """
    if search == "local":
        if corpus is None or cache is not None:
            raise ValueError("search='local' takes passages as corpus, and no cache")
        return _local(corpus)
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
        return RecordedRetriever(web, cache, web.source, EMPTY_LASTS_S)
    raise ValueError(f"search={search!r} is none of {', '.join(get_args(Kind))}")


def _local(corpus: str | Path) -> Retriever:
    path = Path(corpus)
    names = str(corpus).split(",")
    if len(names) > 1 and not path.exists():
        return HybridRetriever([_local(name) for name in names])
    if path.is_file():
        return MemoryRetriever(read_passages(path))
    return DenseRetriever(path) if is_dense(path) else LocalRetriever(path)
