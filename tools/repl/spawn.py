"""Launches the first process if the container is the sandbox: as a plain child of the hub."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

from tools.repl.link import HubMessage


def launch(settings: HubMessage, channel: socket.socket) -> tuple[int, Callable[[], None]]:
    """Run the interpreter on `channel` as descriptor 0; return its process id and how to end it."""
    # The image decides where its programs are: its Python need not be where Debian's is.
    settings["env"]["PATH"] = os.environ.get("PATH", settings["env"]["PATH"])
    settings["state"]["roots"] += [sys.prefix, sys.base_prefix]
    command: list[str] = [sys.executable, "-s", "-c", settings["boot"]]
    process = subprocess.Popen(
        command,
        stdin=channel.fileno(),
        env=settings["env"],
        cwd=settings["folder"],
        start_new_session=True,
    )

    def end() -> None:
        process.kill()
        process.wait(5)

    return process.pid, end
