"""Sandboxes for model-written code: local with Landlock and seccomp, or in Docker.

protocol       the Sandbox protocol, limits and replies
opening        opens the sandbox asked for, or the first that works
local          the local sandbox
docker_engine  the Docker sandbox
hub_client     the client of a hub over a byte stream
boot           builds the first message to a hub
pool           spreads sessions over several sandboxes
messages       texts for the model when a cell is stopped
"""

from __future__ import annotations

from tools.sandbox.messages import (
    BROKEN,
    MAX_CELL_CHARACTERS,
    append_note,
    explain_stop,
    explain_too_long,
)
from tools.sandbox.opening import open_sandbox
from tools.sandbox.pool import Pool
from tools.sandbox.protocol import DockerOptions, Limits, Sandbox, SandboxLost, SandboxReply

__all__ = [
    "BROKEN",
    "MAX_CELL_CHARACTERS",
    "DockerOptions",
    "Limits",
    "Pool",
    "Sandbox",
    "SandboxLost",
    "SandboxReply",
    "append_note",
    "explain_stop",
    "explain_too_long",
    "open_sandbox",
]
