"""Starts the first process where the container is the sandbox: a plain child of the hub."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable

from tools.repl.link import Message


def launch(settings: Message, channel: socket.socket) -> tuple[int, Callable[[], None]]:
    """Run the interpreter with `channel` as its descriptor 0; its process id and how to end it."""
    # The image says where its programs are: its Python need not be where Debian's is.
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
