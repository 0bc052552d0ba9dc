"""Opens the sandbox asked for, or the first that works, and proves by a cell that it does."""

from __future__ import annotations

import logging
from collections.abc import Callable

from tools.sandbox.docker_engine import open_docker
from tools.sandbox.local import open_local
from tools.sandbox.protocol import DockerOptions, Limits, Sandbox, SandboxLost
from tools.tool import ToolUnavailable

log = logging.getLogger(__name__)


def open_sandbox(kind: str, limits: Limits, docker: DockerOptions) -> Sandbox:
    """Start a sandbox and run a cell in it.

    Args:
        kind: local, docker, or auto: local if it works on this machine, else docker.
        limits: of cells, sessions and the sandbox.
        docker: options of a docker sandbox.

    Raises:
        ValueError: `kind` is none of these.
        ToolUnavailable: no sandbox works; the text says what is missing and what to install.
    """
    openers: dict[str, Callable[[], Sandbox]] = {
        "local": lambda: open_local(limits),
        "docker": lambda: open_docker(limits, docker),
    }
    if kind not in ("auto", *openers):
        raise ValueError(f"sandbox {kind!r}: expected auto, local or docker")
    failures = []
    for name in openers if kind == "auto" else [kind]:
        try:
            sandbox = openers[name]()
            _check(sandbox)
        except (SandboxLost, ToolUnavailable) as error:
            failures.append(f"{name}: {error}")
            continue
        for failure in failures:
            log.warning("python cannot run in the sandbox %s", failure)
        log.info("python runs in the %s sandbox", sandbox.name)
        return sandbox
    raise ToolUnavailable("no sandbox can run Python code on this machine.\n" + "\n".join(failures))


def _check(sandbox: Sandbox) -> None:
    """Run a cell, the only proof that a sandbox works; SandboxLost if it does not."""
    reply = sandbox.open(0, [], ["6 * 7"])
    text = reply.results[-1].text if reply.results else ""
    if reply.state is None or text != "42\n":
        sandbox.close()
        raise SandboxLost(f"the first cell did not run ({reply.why}) {text}")
    sandbox.drop([reply.state])
