"""Sandboxes for model-written code: local by Landlock and seccomp, or in Docker.

protocol       the Sandbox protocol, limits and replies
opening        opens the sandbox that is asked for, or the best there is
local          the local sandbox
docker_engine  the Docker sandbox
hub_client     speaks to a hub over a byte stream
boot           what a hub is started with
pool           spreads sessions over several sandboxes
messages       what the model reads when a cell is stopped
"""

from __future__ import annotations

from tools.sandbox.messages import BROKEN, LONGEST_CELL, joined, stopped, too_long
from tools.sandbox.opening import open_sandbox
from tools.sandbox.pool import Pool
from tools.sandbox.protocol import DockerOptions, Limits, Reply, Sandbox, SandboxLost

__all__ = [
    "BROKEN",
    "LONGEST_CELL",
    "DockerOptions",
    "Limits",
    "Pool",
    "Reply",
    "Sandbox",
    "SandboxLost",
    "joined",
    "open_sandbox",
    "stopped",
    "too_long",
]
