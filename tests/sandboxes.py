"""Sandboxes that tests of cells run against, and a way to make a tool drop its live states."""

import pytest

from tools.python import PythonTool

KINDS = [
    "local",
    pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.full]),
]


def forget_states(tool: PythonTool) -> None:
    """Drop every live state, so that the next call replays."""
    with tool._lock:
        handles = list(tool._live.values())
        tool._live.clear()
    tool._get_sandbox().drop(handles)
