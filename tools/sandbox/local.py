"""The local sandbox: sandlock (Landlock and seccomp); no root, no daemon, Linux 6.12 or later.

The hub is a child process of the learner, outside the sandbox. Only the processes that run cells
are inside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading

from tools.sandbox.boot import PRELOADED, build_boot_message, build_environment, read_boot_code
from tools.sandbox.hub_client import HubSandbox, wait_readable
from tools.sandbox.protocol import Limits
from tools.tool import ToolUnavailable

log = logging.getLogger(__name__)

MIN_LANDLOCK = 3
"""Landlock version (Linux 6.2) below which cells could truncate files: no local sandbox then."""

DEGRADATIONS = {
    "NET_TCP": (4, "TCP is not blocked by Landlock, but no cell can make a socket"),
    "FS_IOCTL_DEV": (5, "cells can make ioctl calls on device files"),
    "SIGNAL_SCOPE": (
        6,
        "signals are not kept inside, so cells cannot send any at all",
    ),
    "ABSTRACT_UNIX_SOCKET_SCOPE": (6, "abstract sockets are not blocked, but no cell can make one"),
}
"""sandlock's opt-outs: the Landlock version that has the feature, and the effect of its absence."""

DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class LocalTransport:
    """A hub as a child process, over a socket pair."""

    name = "local"

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._socket, hub_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-c", read_boot_code()],
            stdin=hub_end.fileno(),
            stdout=hub_end.fileno(),
            stderr=self._errors,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        hub_end.close()
        self.leader = 0
        """Process id of the first process, which leads the sandbox's group; 0: not known yet."""
        self._lock = threading.Lock()
        self._ended: str | None = None

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, seconds: float) -> bytes | None:
        if not wait_readable(self._socket, seconds):
            return None
        return self._socket.recv(1 << 16)

    def kill(self) -> str:
        """Let the hub end its processes; if it cannot, end them from here."""
        with self._lock:
            if self._ended is None:
                self._ended = self._kill()
            return self._ended

    def _kill(self) -> str:
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(3)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self.leader and self._process.returncode:
            # The hub ended without ending its processes.
            with contextlib.suppress(OSError):
                os.killpg(self.leader, signal.SIGKILL)
        self._errors.seek(0)
        errors = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
        self._errors.close()
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return errors


def list_readable_paths() -> list[str]:
    """Return what cells may read: the interpreter, its packages, system libraries; nothing else."""
    paths = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/etc/fonts"]
    paths += ["/proc/cpuinfo", "/proc/meminfo"]
    for prefix in (sys.prefix, sys.base_prefix):
        paths += [os.path.join(prefix, part) for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    paths += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    existing = [path for path in dict.fromkeys(paths) if os.path.exists(path)]
    real = [os.path.realpath(path) for path in existing]
    return list(dict.fromkeys([*existing, *real]))


def _require_landlock() -> int:
    """Return the version of Landlock; ToolUnavailable if the local sandbox cannot run."""
    if sys.platform != "linux":
        raise ToolUnavailable(
            f"the local sandbox needs Linux, this is {platform.system()};"
            " install Docker and use sandbox='docker'"
        )
    try:
        import sandlock
    except ImportError as error:
        raise ToolUnavailable(
            f"the package sandlock is missing ({error}); pip install sandlock"
        ) from None
    version = sandlock.landlock_abi_version()
    if version < MIN_LANDLOCK:
        has = f"Landlock version {version}" if version > 0 else "no Landlock, or not switched on"
        raise ToolUnavailable(
            f"this kernel ({platform.release()}) has {has}, the local sandbox needs"
            f" version {MIN_LANDLOCK} (Linux 6.2; all of it 6.12); install Docker and use"
            " sandbox='docker'"
        )
    return int(version)


def open_local(limits: Limits) -> HubSandbox:
    """Start the local sandbox.

    Raises:
        ToolUnavailable: this is not Linux, or sandlock or its kernel features are missing.
        SandboxLost: the sandbox started and ended; the text has its error output.
    """
    version = _require_landlock()
    degraded = [name for name, (needed, _effect) in DEGRADATIONS.items() if version < needed]
    for name in degraded:
        log.warning("Landlock version %d has no %s: %s", version, name, DEGRADATIONS[name][1])
    folder = tempfile.mkdtemp(prefix="appo-sandbox-")
    settings = {
        "folder": folder,
        "own_disk": "",
        "python": sys.executable,
        "env": build_environment(folder),
        "degraded": degraded,
    }
    state = {
        "folder": folder,
        "roots": list_readable_paths(),
        "devices": [path for path in DEVICES if os.path.exists(path)],
        "warm": list(PRELOADED),
        "signals": "SIGNAL_SCOPE" not in degraded,
    }
    transport = LocalTransport(folder)
    message = build_boot_message("jail", settings, state, limits)
    sandbox = HubSandbox(transport, message, limits)
    transport.leader = sandbox.pid
    if not sandbox.filtered:
        sandbox.close()
        raise ToolUnavailable(
            f"on {platform.machine()} no filter of system calls is known, without which cells could"
            " reach the network; install Docker and use sandbox='docker'"
        )
    return sandbox
