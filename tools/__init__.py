"""Tools that a model may call. Knows nothing of reinforcement learning, tasks or tokens."""

from tools.tool import Tool, ToolContext, ToolResult, ToolUnavailable

__all__ = ["Tool", "ToolContext", "ToolResult", "ToolUnavailable"]
