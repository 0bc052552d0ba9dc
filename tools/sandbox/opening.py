"""TODO."""

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
        kind: local, docker, or auto: local if it works here, else docker.
        limits: of cells and of the sandbox.
        docker: how a docker sandbox is made.

    Raises:
        ValueError: `kind` is none of these.
        ToolUnavailable: none could be had; says what is missing and what to install.
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
            _prove(sandbox)
        except (SandboxLost, ToolUnavailable) as error:
            failures.append(f"{name}: {error}")
            continue
        for failure in failures:
            log.warning("python cannot run in the sandbox %s", failure)
        log.info("python runs in the %s sandbox", sandbox.name)
        return sandbox
    raise ToolUnavailable("no sandbox for Python code can be had here.\n" + "\n".join(failures))


def _prove(sandbox: Sandbox) -> None:
    """Run a cell: the only proof that a sandbox works."""
    reply = sandbox.open(0, [], ["6 * 7"])
    said = reply.results[-1].text if reply.results else ""
    if reply.state is None or said != "42\n":
        sandbox.close()
        raise SandboxLost(f"a first cell did not run ({reply.why}) {said}")
    sandbox.drop([reply.state])
