"""Starts a hub with the sandbox's first process, and cleans up when it stops.

Runs in any python3 on Linux with the standard library alone, except for the local launcher.
"""

from __future__ import annotations

import sys
from typing import Any

from tools.repl import kernel, usage
from tools.repl.hub import Hub, write_answer
from tools.repl.jobs import remove_folder
from tools.repl.link import ChannelBroken, HubMessage, HubStopped, Link


def main(settings: HubMessage) -> None:
    """Start the first process in its sandbox, announce it, and serve requests."""
    kernel.LIBC.prctl(kernel.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    kernel.LIBC.prctl(kernel.PR_SET_DUMPABLE, 0, 0, 0, 0)
    launch = sys.modules["tools.repl." + settings["launcher"]].launch
    link = Link()
    pid, end = launch(settings, link.state_end)
    link.state_end.close()
    link.socket.setblocking(True)
    kernel.set_oom_score(pid)
    hub = Hub(settings, link, pid)
    try:
        body: dict[str, Any] = {"modules": settings["modules"], "entry": "state"}
        body["settings"] = settings["state"]
        link.send(body)
        ready: list[HubMessage] = []
        while not ready:
            ready = link.receive()
        link.socket.setblocking(False)
        limits = usage.build_process_limits(pid, settings["limits"])
        link.send({"op": "limits", "limits": limits, "huge": usage.find_huge_ranges(pid)})
        write_answer({"id": 0, "ready": ready[0], "pid": pid})
        hub.serve()
    except (ChannelBroken, HubStopped) as error:
        sys.stderr.write(f"{error}\n")
    finally:
        end()
        hub.remover.close()
        remove_folder(settings["folder"])
