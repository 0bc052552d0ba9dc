"""The Docker sandbox: a container without network, capabilities or a writable root.

The hub is the container's first process. Any image with python3 (3.9 or later) will do, because the
sandbox's programs are sent as source.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING

from tools.sandbox.boot import PRELOADED, build_boot_message, build_environment, read_boot_code
from tools.sandbox.hub_client import HubSandbox, wait_readable
from tools.sandbox.protocol import DockerOptions, Limits
from tools.tool import ToolUnavailable

if TYPE_CHECKING:
    import docker

log = logging.getLogger(__name__)

FOLDER = "/work"

BUILD_HINT = "build one with `docker build -t appo-sandbox:local - < tools/Dockerfile`"

ROOTS = ["/usr", "/lib", "/lib64", "/bin", "/sbin", "/etc", "/opt", "/proc/cpuinfo"]

DEVICES = ["/dev/null", "/dev/zero", "/dev/urandom", "/dev/random"]


class DockerTransport:
    """The hub as a container's first process, over the engine's attach stream."""

    name = "docker"

    def __init__(self, client: docker.DockerClient, container: str) -> None:
        self.container = container
        self._client = client
        self._host = _read_address()
        attach = {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1}
        self._stream = client.api.attach_socket(container, params=attach)
        self._socket = self._stream._sock
        self._socket.settimeout(None)
        self._frames = bytearray()
        self._errors = b""
        self._lock = threading.Lock()
        self._ended: str | None = None
        client.api.start(container)

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, seconds: float) -> bytes | None:
        """Return what the hub writes to standard output; its standard error is kept for `kill`."""
        while True:
            while len(self._frames) >= 8:
                kind, size = struct.unpack_from(">BxxxI", self._frames)
                if len(self._frames) < 8 + size:
                    break
                body = bytes(self._frames[8 : 8 + size])
                del self._frames[: 8 + size]
                if kind == 1 and body:
                    return body
                self._errors = (self._errors + body)[-2000:]
            if not wait_readable(self._socket, seconds):
                return None
            data = self._socket.recv(1 << 16)
            if not data:
                return b""
            self._frames += data

    def kill(self) -> str:
        """Remove the container, and with it every process and file in it."""
        import docker

        with self._lock:
            if self._ended is not None:
                return self._ended
            self._ended = self._errors.decode("utf-8", "replace").strip()
            try:
                _check_engine(self._host)
                self._client.api.remove_container(self.container, force=True)
            except docker.errors.NotFound:
                pass
            except docker.errors.APIError as error:
                if error.status_code != 409:
                    self._ended += f"; the container could not be removed: {error}"
            except OSError as error:
                self._ended += f"; the engine could not be reached: {error}"
            with contextlib.suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)
            self._stream.close()
            self._socket.close()
            self._client.close()
            return self._ended


def open_docker(limits: Limits, options: DockerOptions) -> HubSandbox:
    """Start a container with a hub.

    Raises:
        ToolUnavailable: there is no engine or no image; the text says what to do.
        SandboxLost: the container started and ended; the text has its error output.
    """
    if sys.platform == "win32":
        raise ToolUnavailable("on Windows, run under WSL 2, where Docker and the rest work")
    client = _connect()
    import docker

    try:
        container = _create_container(client, limits, options)
        transport = DockerTransport(client, container)
    except docker.errors.ImageNotFound:
        client.close()
        raise ToolUnavailable(f"the engine has no image {options.image!r}; {BUILD_HINT}") from None
    except docker.errors.DockerException as error:
        client.close()
        raise ToolUnavailable(f"the container could not be started: {error}") from None
    settings = {
        "folder": FOLDER,
        "own_disk": FOLDER,
        "env": build_environment(FOLDER),
        "python": "python3",
    }
    state = {
        "folder": FOLDER,
        "roots": ROOTS,
        "devices": DEVICES,
        "warm": list(PRELOADED),
        "signals": True,
    }
    sandbox = HubSandbox(transport, build_boot_message("spawn", settings, state, limits), limits)
    if not sandbox.filtered:
        log.warning(
            "there is no filter of system calls for the engine's machine: cells run under the"
            " engine's own filter, which allows more"
        )
    if sandbox.single_session:
        log.warning(
            "the engine's kernel has Landlock version %d: states in a container are not kept out"
            " of each other's files, so each episode gets a container of its own; Linux 6.2 or"
            " later avoids that",
            sandbox.landlock,
        )
    return sandbox


def _create_container(client: docker.DockerClient, limits: Limits, options: DockerOptions) -> str:
    """Create a container with only an interpreter and a work folder in memory; return its id."""
    processors = options.cpus or float(client.info()["NCPU"])
    host = client.api.create_host_config(
        auto_remove=True,
        network_mode="none",
        read_only=True,
        tmpfs={FOLDER: _build_tmpfs_options(limits, options.user)},
        cap_drop=["ALL"],
        security_opt=["no-new-privileges"],
        pids_limit=limits.all_processes,
        mem_limit=options.memory,
        memswap_limit=options.memory,
        nano_cpus=int(processors * 1e9),
        ipc_mode="private",
        shm_size="1m",
        runtime=options.runtime,
    )
    container = client.api.create_container(
        options.image,
        entrypoint=["python3", "-s", "-c", read_boot_code()],
        command=[],
        stdin_open=True,
        user=options.user,
        working_dir=FOLDER,
        environment={"PYTHONDONTWRITEBYTECODE": "1"},
        network_disabled=True,
        host_config=host,
        labels={"appo-sandbox": str(os.getpid())},
    )
    return str(container["Id"])


def _connect() -> docker.DockerClient:
    try:
        import docker
    except ImportError as error:
        raise ToolUnavailable(
            f"the package docker is missing ({error}); pip install docker"
        ) from None
    host = _read_address()
    try:
        _check_engine(host)
        client = docker.from_env(timeout=60)
        client.ping()
    except (docker.errors.DockerException, OSError) as error:
        raise ToolUnavailable(
            f"no Docker engine answers at {host} ({error});"
            " install Docker and start it, or set DOCKER_HOST"
        ) from None
    return client


def _read_address() -> str:
    return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"


def _check_engine(host: str) -> None:
    """Raise OSError if no engine answers: the package would leave a socket open for the attempt."""
    if host.startswith("unix://"):
        with socket.socket(socket.AF_UNIX) as probe:
            probe.connect(host.removeprefix("unix://"))


def _build_tmpfs_options(limits: Limits, user: str) -> str:
    uid, _, gid = user.partition(":")
    size = max(limits.disk * 8, 1 << 30)
    inodes = max(limits.files * 16, 65_536)
    return f"rw,nosuid,nodev,size={size},nr_inodes={inodes},mode=0700,uid={uid},gid={gid or uid}"
