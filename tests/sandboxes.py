"""Sandboxes that tests of cells run against, and helpers to wait and to drop live states."""

import time

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


def wait_for(action, expected, seconds=60.0):
    """Call `action` until it returns `expected`; return its last value."""
    deadline = time.monotonic() + seconds
    while (value := action()) != expected and time.monotonic() < deadline:
        time.sleep(0.05)
    return value
