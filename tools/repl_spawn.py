"""Starts the sandbox's first process where the whole container is the sandbox: a plain child of the hub."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

from tools.repl_link import Message


def launch(settings: Message, channel: Any) -> tuple[int, Callable[[], None]]:
    """Run the interpreter with `channel` as its descriptor 0; its process id and how to end it."""
    command = [sys.executable, "-s", "-c", settings["boot"]]
    process = subprocess.Popen(
        command, stdin=channel, env=settings["env"], cwd=settings["folder"], process_group=0
    )

    def end() -> None:
        process.kill()
        process.wait(5)

    return process.pid, end
