"""How a hub begins and ends: the sandbox's first process, then requests, then nothing left.

Runs in any python3 on Linux with the standard library alone, but for the local sandbox's launcher.
"""

from __future__ import annotations

import sys
from typing import Any

from tools.repl import kernel, usage
from tools.repl.hub import Hub, answer
from tools.repl.jobs import remove
from tools.repl.link import Broken, Ended, Link, Message


def main(settings: Message) -> None:
    """Start the first process in its sandbox, say so, and serve."""
    kernel.LIBC.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    kernel.LIBC.prctl(kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)
    launch = sys.modules["tools.repl." + settings["launcher"]].launch
    link = Link()
    pid, end = launch(settings, link.theirs)
    link.theirs.close()
    link.socket.setblocking(True)
    kernel.offer_to_the_oom_killer(pid)
    hub = Hub(settings, link, pid)
    try:
        body: dict[str, Any] = {"modules": settings["modules"], "entry": "state"}
        body["settings"] = settings["state"]
        link.send(body)
        ready: list[Message] = []
        while not ready:
            ready = link.receive()
        link.socket.setblocking(False)
        limits = usage.process_limits(pid, settings["limits"])
        link.send({"op": "limits", "limits": limits, "huge": usage.huge_ranges(pid)})
        answer({"id": 0, "ready": ready[0], "pid": pid})
        hub.serve()
    except (Broken, Ended) as error:
        sys.stderr.write(f"{error}\n")
    finally:
        end()
        hub.remover.close()
        remove(settings["folder"])
