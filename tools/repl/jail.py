"""Starts the first process under sandlock, beside the hub, on the learner's machine.

Sent to the hub as source, like the other parts; needs the package sandlock.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import sandlock

from tools.repl.link import Message

ROOM = 2
"""Times the processes of a sandbox that sandlock lets start.

Its count never gives back the place of a process that is killed before its first look at a file,
so the hub keeps the limits; this one only holds a fork bomb until the hub has seen it.
"""


def launch(settings: Message, channel: socket.socket) -> tuple[int, Callable[[], None]]:
    """Run the interpreter with `channel` as its descriptor 0; its process id and how to end it."""
    degraded = [getattr(sandlock.Protection, name) for name in settings["degraded"]]
    sandbox = sandlock.Sandbox(
        fs_readable=[*settings["state"]["roots"], *settings["state"]["devices"]],
        fs_writable=[settings["folder"], "/dev/null"],
        cwd=settings["folder"],
        clean_env=True,
        env=settings["env"],
        max_processes=ROOM * int(settings["limits"]["all_processes"]),
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
