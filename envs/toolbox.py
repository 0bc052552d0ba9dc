"""The tools of an environment, created on first use and shared by all its forks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypedDict

from benchmarks import Benchmark, DataUnavailable, Split
from envs.tags import ANSWER, RESULT, THINK
from tools import (
    TOOLS,
    Cache,
    MemoryRetriever,
    PythonTool,
    Retriever,
    SearchTool,
    Tool,
    ToolResult,
    require,
)
from tools.search import open_retriever
from tools.web import BrowseTool, WebPages

CacheMode = Literal["live", "record", "replay", "frozen"]

RunTool = Callable[[Tool[Any], Any, str], tuple[Any, ToolResult]]
"""(tool, state, argument) -> (next state, result); may raise instead of running the tool."""


SEARCHES = ("auto", "local", "remote", "web")


class ToolOptions(TypedDict, total=False):
    """Options for creating tools; keywords of ToolEnv and of `gym.make`."""

    sandbox: str
    """Where Python runs: auto, local or docker."""
    search: str
    """auto (a local corpus if there is one, else the web), local, remote or web."""
    corpus: str | Path | None
    """local: an index folder, of words or vectors, or a JSONL file of passages, or several with
    commas between, instead of the benchmark's own or the data folder's; remote: the service's URL;
    web: an engine of ddgs."""
    cache: str | Path | None
    """File that records the answers of remote, web and browse."""
    cache_mode: CacheMode
    """record: fetch what the cache lacks; live, replay, frozen: see `tools.cache`."""


def run_tool(tool: Tool[Any], state: Any, argument: str) -> tuple[Any, ToolResult]:  # noqa: ANN401 - a state is the tool's own
    """Run a tool, and nothing else."""
    return tool.run(state, argument)


class Toolbox:
    """Creates tools on first use. Mutated once, by `tools()`; connections belong to one process."""

    def __init__(
        self,
        benchmark: Benchmark,
        tools: Sequence[str | Tool[Any]],
        split: Split,
        data_dir: Path | None,
        *,
        sandbox: str = "auto",
        search: str = "auto",
        corpus: str | Path | None = None,
        cache: str | Path | None = None,
        cache_mode: CacheMode = "record",
    ) -> None:
        """Check the names and open nothing; see ToolEnv, and ToolOptions for the keywords."""
        unknown = [tool for tool in tools if isinstance(tool, str) and tool not in TOOLS]
        if unknown:
            raise ValueError(f"unknown tools {unknown}; expected some of {sorted(TOOLS)}")
        self.names = tuple(tool if isinstance(tool, str) else tool.name for tool in tools)
        fit = [name.isidentifier() and name not in (ANSWER, RESULT, THINK) for name in self.names]
        if not all(fit) or len(set(self.names)) < len(self.names):
            raise ValueError(
                f"tools are named {self.names}; expected different words, none of them "
                f"{ANSWER}, {RESULT} or {THINK}"
            )
        if search not in SEARCHES:
            raise ValueError(f"search is {search!r}; expected one of {SEARCHES}")
        self._chosen = tuple(tools)
        self._benchmark, self._split, self._data_dir = benchmark, split, data_dir
        self._sandbox, self._search, self._corpus = sandbox, search, corpus
        self._cache, self._cache_mode = cache, cache_mode
        self._tools: tuple[Tool[Any], ...] | None = None
        self._lock = threading.Lock()

    def tools(self) -> tuple[Tool[Any], ...]:
        """The tools in the order of the names."""
        if self._tools is None:
            with self._lock:
                if self._tools is None:
                    cache = self._open_cache()
                    self._tools = tuple(self._make(tool, cache) for tool in self._chosen)
        return self._tools

    def close(self) -> None:
        """Close the tools that were made."""
        for tool in self._tools or ():
            tool.close()

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the tools: another process creates its own."""
        return {**self.__dict__, "_tools": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _make(self, tool: str | Tool[Any], cache: Cache | None) -> Tool[Any]:
        if not isinstance(tool, str):
            return tool
        if tool == "python":
            return PythonTool(sandbox=self._sandbox)
        if tool == "search":
            return self._search_tool(cache)
        if tool == "browse":
            if cache is None or cache.mode in ("live", "record"):
                require("web", "httpx", "trafilatura", "lxml_html_clean", "pypdf")
            return BrowseTool(WebPages(), cache)
        created: Tool[Any] = TOOLS[tool]()
        return created

    def _search_tool(self, cache: Cache | None) -> Tool[Any]:
        results = self._benchmark.search_results
        local = self._local_retriever() if self._search in ("auto", "local") else None
        if local is not None:
            return SearchTool(local, results=results)
        if self._search == "local":
            raise DataUnavailable(
                f"{self._benchmark.name} brings no corpus for search='local'; give corpus= an "
                "index folder or a JSONL file of {id, title, text}, or use search='web'"
            )
        corpus = None if self._corpus is None else str(self._corpus)
        retriever = open_retriever("remote" if self._search == "remote" else "web", corpus, cache)
        return SearchTool(retriever, results=results, cache=cache)

    def _local_retriever(self) -> Retriever | None:
        """A retriever over the given corpus, the benchmark's own, or the data folder's."""
        if self._corpus is not None:
            return open_retriever("local", self._corpus)
        load_corpus = self._benchmark.corpus
        passages = () if load_corpus is None else load_corpus(self._split, self._data_dir)
        if passages:
            return MemoryRetriever(passages)
        if self._data_dir is None:
            return None
        path = self._data_dir / "corpus/passages.jsonl"
        return open_retriever("local", path) if path.exists() else None

    def _open_cache(self) -> Cache | None:
        return None if self._cache is None else Cache(self._cache, self._cache_mode)
