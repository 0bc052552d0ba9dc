"""The local sandbox: sandlock (Landlock and seccomp); no root, no daemon, Linux 6.12 or later.

The hub is a process of its own beside the learner, outside the sandbox; only the processes that
run cells are inside.
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

from tools.sandbox.boot import WARM, boot_code, boot_message, environment
from tools.sandbox.hub_client import HubSandbox, readable
from tools.sandbox.protocol import Limits
from tools.tool import ToolUnavailable

log = logging.getLogger(__name__)

LEAST = 3
"""Landlock version (Linux 6.2) below which files could be truncated: nothing local then."""


WITHOUT = {
    "NET_TCP": (4, "TCP is not blocked by Landlock, but no cell can make a socket"),
    "FS_IOCTL_DEV": (5, "device files can be asked for more than reading and writing"),
    "SIGNAL_SCOPE": (
        6,
        "signals are not kept inside, so cells cannot send any at all",
    ),
    "ABSTRACT_UNIX_SOCKET_SCOPE": (6, "abstract sockets are not blocked, but no cell can make one"),
}
"""sandlock's opt-outs by the Landlock version that has the feature; what is so without it."""


DEVICES = ("/dev/null", "/dev/zero", "/dev/urandom", "/dev/random")


class LocalTransport:
    """A hub as a child process, over a socket pair."""

    name = "local"

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by kill
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._process = subprocess.Popen(
            [sys.executable, "-s", "-c", boot_code()],
            stdin=theirs.fileno(),
            stdout=theirs.fileno(),
            stderr=self._errors,
            cwd="/",
            env={"PATH": os.environ.get("PATH", ""), "LANG": "C.UTF-8"},
            start_new_session=True,
        )
        theirs.close()
        self.inside = 0
        self._lock = threading.Lock()
        self._ended: str | None = None

    def send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def receive(self, seconds: float) -> bytes | None:
        if not readable(self._socket, seconds):
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
        if self.inside and self._process.returncode:
            end_group(self.inside)
        self._errors.seek(0)
        said = self._errors.read()[-2000:].decode("utf-8", "replace").strip()
        self._errors.close()
        self._socket.close()
        shutil.rmtree(self.folder, ignore_errors=True)
        return said


def end_group(leader: int) -> None:
    """Kill the process group of a sandbox whose hub is gone."""
    with contextlib.suppress(OSError):
        os.killpg(leader, signal.SIGKILL)


def readable_paths() -> list[str]:
    """What cells may read here: the interpreter, its packages, system libraries; nothing else."""
    wanted = ["/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime"]
    wanted += ["/etc/fonts"]
    wanted += ["/proc/cpuinfo", "/proc/meminfo"]
    for prefix in (sys.prefix, sys.base_prefix):
        wanted += [os.path.join(prefix, part) for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    wanted += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    found = [path for path in dict.fromkeys(wanted) if os.path.exists(path)]
    real = [os.path.realpath(path) for path in found]
    return list(dict.fromkeys([*found, *real]))


def _landlock() -> int:
    """Version of Landlock here; ToolUnavailable where nothing local can be had."""
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
    if version < LEAST:
        has = f"Landlock version {version}" if version > 0 else "no Landlock, or not switched on"
        raise ToolUnavailable(
            f"this kernel ({platform.release()}) has {has}, the local sandbox needs version {LEAST}"
            " (Linux 6.2; all of it 6.12); install Docker and use sandbox='docker'"
        )
    return int(version)


def open_local(limits: Limits) -> HubSandbox:
    """Start the local sandbox.

    Raises:
        ToolUnavailable: not on Linux, sandlock missing, or its kernel features missing.
        SandboxLost: it started and ended; the text says what it complained of.
    """
    version = _landlock()
    degraded = [name for name, (needed, _so) in WITHOUT.items() if version < needed]
    for name in degraded:
        log.warning("Landlock version %d has no %s: %s", version, name, WITHOUT[name][1])
    folder = tempfile.mkdtemp(prefix="appo-sandbox-")
    settings = {
        "folder": folder,
        "own_disk": "",
        "python": sys.executable,
        "env": environment(folder),
        "degraded": degraded,
    }
    state = {
        "folder": folder,
        "roots": readable_paths(),
        "devices": [path for path in DEVICES if os.path.exists(path)],
        "warm": list(WARM),
        "signals": "SIGNAL_SCOPE" not in degraded,
    }
    transport = LocalTransport(folder)
    message = boot_message("jail", settings, state, limits)
    sandbox = HubSandbox(transport, message, limits)
    transport.inside = sandbox.pid
    if not sandbox.filtered:
        sandbox.close()
        raise ToolUnavailable(
            f"on {platform.machine()} no filter of system calls is known, without which cells could"
            " reach the network; install Docker and use sandbox='docker'"
        )
    return sandbox
