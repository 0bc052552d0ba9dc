"""Tools that a model may call. They know nothing of reinforcement learning, tasks or tokens.

tool         the Tool protocol: (state, argument) to (state, result)
python       runs Python cells whose state can be forked
calculator   arithmetic without code
cache        records and replays answers from the network
per_process  resources that do not survive a fork
extras       checks for optional packages
sandbox      isolated environments for Python
repl         programs that run inside a sandbox
search       the search tool and its retrievers
web          the browse tool, fetching and retries

Commands: local_index, dense and retrieval_server make and serve indexes.
"""

from __future__ import annotations

from tools.cache import Cache, ReplayMiss
from tools.calculator import CalculatorTool
from tools.extras import require
from tools.python import PythonTool
from tools.search import Hit, MemoryRetriever, Retriever, SearchTool
from tools.tool import Tool, ToolContext, ToolResult, ToolUnavailable
from tools.web import BrowseTool

TOOLS = {
    "search": SearchTool,
    "python": PythonTool,
    "browse": BrowseTool,
    "calculator": CalculatorTool,
}
"""Each tool's class by its name, which is also its tag."""

__all__ = [
    "TOOLS",
    "BrowseTool",
    "Cache",
    "CalculatorTool",
    "Hit",
    "MemoryRetriever",
    "PythonTool",
    "ReplayMiss",
    "Retriever",
    "SearchTool",
    "Tool",
    "ToolContext",
    "ToolResult",
    "ToolUnavailable",
    "require",
]
