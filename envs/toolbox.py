"""The tools of an environment, made when first needed and shared by all its forks."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import Benchmark, DataUnavailable, Passage
from benchmarks.benchmark import Split
from envs.tags import ANSWER, RESULT, THINK
from tools import TOOLS, MemoryRetriever, PythonTool, Retriever, SearchTool, Tool


class Toolbox:
    """Mutated once, by the first `tools()`; a connection inside belongs to one process."""

    def __init__(
        self,
        benchmark: Benchmark,
        tools: Sequence[str | Tool[Any]],
        split: Split,
        data_dir: Path | None,
        sandbox: str,
        search: str,
        corpus: str | Path | None,
    ) -> None:
        """Checks the names and opens nothing; the arguments are ToolEnv's."""
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
        if search not in ("auto", "local", "web"):
            raise ValueError(f"search is {search!r}; expected auto, local or web")
        self._given = tuple(tools)
        self._benchmark, self._split, self._data_dir = benchmark, split, data_dir
        self._sandbox, self._search, self._corpus = sandbox, search, corpus
        self._tools: tuple[Tool[Any], ...] | None = None
        self._lock = threading.Lock()

    def tools(self) -> tuple[Tool[Any], ...]:
        """The tools in the order of the names."""
        if self._tools is None:
            with self._lock:
                if self._tools is None:
                    self._tools = tuple(self._make(tool) for tool in self._given)
        return self._tools

    def close(self) -> None:
        """Close the tools that were made."""
        for tool in self._tools or ():
            tool.close()

    def __getstate__(self) -> dict[str, Any]:
        """Without the tools that were made here: another process makes its own."""
        return {**self.__dict__, "_tools": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def _make(self, tool: str | Tool[Any]) -> Tool[Any]:
        if not isinstance(tool, str):
            return tool
        if tool == "python":
            return PythonTool(sandbox=self._sandbox)
        if tool == "search":
            return SearchTool(self._retriever(), results=self._benchmark.search_results)
        made: Tool[Any] = TOOLS[tool]()
        return made

    def _retriever(self) -> Retriever:
        if self._search != "web":
            if self._corpus is not None:
                return MemoryRetriever(_passages(Path(self._corpus)))
            brought = self._benchmark.corpus
            passages = () if brought is None else brought(self._split, self._data_dir)
            if passages:
                return MemoryRetriever(passages)
            beside = None if self._data_dir is None else self._data_dir / "corpus/passages.jsonl"
            if beside is not None and beside.exists():
                return MemoryRetriever(_passages(beside))
            if self._search == "local":
                raise DataUnavailable(
                    f"{self._benchmark.name} brings no corpus for search='local'; give corpus= a "
                    "JSONL file of {id, title, text}, or use search='web'"
                )
        from tools.web_search import WebRetriever

        return WebRetriever()


def _passages(path: Path) -> Sequence[Passage]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Passage(row["id"], row["title"], row["text"]) for row in rows]
