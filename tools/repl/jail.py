"""Launches the first process under sandlock, next to the hub on the learner's machine.

Sent to the hub as source, like the other modules; needs the package sandlock.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import sandlock

from tools.repl.link import HubMessage

PROCESS_MARGIN = 2
"""Factor by which sandlock's limit of processes exceeds the sandbox's own.

sandlock never releases its slot for a process that is killed before its first access to a file.
The hub therefore enforces the limits; this one only contains a fork bomb until the hub sees it.
"""


def launch(settings: HubMessage, channel: socket.socket) -> tuple[int, Callable[[], None]]:
    """Run the interpreter on `channel` as descriptor 0; return its process id and how to end it."""
    degraded = [getattr(sandlock.Protection, name) for name in settings["degraded"]]
    sandbox = sandlock.Sandbox(
        fs_readable=[*settings["state"]["roots"], *settings["state"]["devices"]],
        fs_writable=[settings["folder"], "/dev/null"],
        cwd=settings["folder"],
        clean_env=True,
        env=settings["env"],
        max_processes=PROCESS_MARGIN * int(settings["limits"]["all_processes"]),
        no_randomize_memory=True,
        allow_degraded=degraded,
    )
    saved = os.dup(0)
    os.dup2(channel.fileno(), 0)
    try:
        process = sandbox.popen([settings["python"], "-s", "-c", settings["boot"]])
    finally:
        os.dup2(saved, 0)
        os.close(saved)

    def end() -> None:
        process.kill()
        process.wait(5)

    return int(process.pid or 0), end
