"""Tools that a model may call. Knows nothing of reinforcement learning, tasks or tokens."""

from tools.browse import BrowseTool
from tools.calculator import CalculatorTool
from tools.python import PythonTool
from tools.retrievers import Hit, MemoryRetriever, Retriever
from tools.search import SearchTool
from tools.tool import Tool, ToolContext, ToolResult, ToolUnavailable

TOOLS = {
    "search": SearchTool,
    "python": PythonTool,
    "browse": BrowseTool,
    "calculator": CalculatorTool,
}
"""Every tool's class by its name, which is also its tag."""

__all__ = [
    "TOOLS",
    "BrowseTool",
    "CalculatorTool",
    "Hit",
    "MemoryRetriever",
    "PythonTool",
    "Retriever",
    "SearchTool",
    "Tool",
    "ToolContext",
    "ToolResult",
    "ToolUnavailable",
]
