"""Hostile cells against both sandboxes: the host and all other states stay unharmed."""

import contextlib
import gc
import os
import secrets
import socket
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sandbox_attacks import ATTACKS
from tests.sandbox_leaks import list_group
from tests.sandboxes import KINDS, wait_for
from tools.python import PythonTool
from tools.sandbox.protocol import Limits
from tools.tool import ToolContext

LIMITS = Limits(
    cpu=1.5,
    wall=3.0,
    memory=192 << 20,
    processes=16,
    output=4 << 20,
    disk=16 << 20,
    files=500,
    file_size=8 << 20,
    open_files=128,
    all_processes=512,
    start=60.0,  # a loaded machine is slow without any attack
    answer=300.0,
)
CLOCK = f"took longer than {LIMITS.wall:g} s"
"""Note about a cell past its time: one that sleeps or, on a loaded machine, any cell."""
TRIES = 6
SETTLED = "{0} = '{1}'\nwith open('mine', 'w') as file: file.write('{1}')\nprint('settled')"
"""A session's first cell: a variable and a file of its own."""


class Host:
    """Targets that an attack must not reach: a file, a process, listeners, a secret."""

    def __init__(self, folder: Path) -> None:
        self.secret = secrets.token_hex(8)
        os.environ["APPO_TEST_SECRET"] = self.secret
        self.canary = folder / "canary.txt"
        self.canary.write_text(self.secret)
        self.canary.chmod(0o644)
        self.process = subprocess.Popen(["sleep", "3600"])
        self.accepted = []
        self.sockets = []
        self.tcp = self._listen(socket.AF_INET, ("127.0.0.1", 0))[1]
        self.udp = self._listen(socket.AF_INET, ("127.0.0.1", 0), socket.SOCK_DGRAM)[1]
        self.unix = str(folder / "socket")
        self._listen(socket.AF_UNIX, self.unix)
        self.abstract = f"appo-{self.secret}"
        self._listen(socket.AF_UNIX, "\0" + self.abstract)

    def _listen(self, family, address, kind=socket.SOCK_STREAM):
        listener = socket.socket(family, kind)
        listener.bind(address)
        if kind == socket.SOCK_STREAM:
            listener.listen()
        listener.setblocking(False)
        self.sockets.append(listener)
        return listener.getsockname()

    def fill(self, cell: str, victim: str, tool: PythonTool) -> str:
        return cell.format(
            canary=self.canary,
            folder=self.canary.parent,
            others=", ".join(map(str, [self.process.pid, *list_others(tool)])),
            tcp=self.tcp,
            udp=self.udp,
            unix=self.unix,
            abstract=self.abstract,
            secret=self.secret,
            victim=victim,
            repository=ROOT,
        )

    def check(self) -> None:
        assert self.canary.read_text() == self.secret
        assert self.canary.stat().st_mode & 0o777 == 0o644
        assert self.process.poll() is None
        assert {path.name for path in self.canary.parent.iterdir()} == {"canary.txt", "socket"}
        for listening in self.sockets:
            with pytest.raises(BlockingIOError):
                listening.recv(1) if listening.type == socket.SOCK_DGRAM else listening.accept()

    def close(self) -> None:
        for listening in self.sockets:
            listening.close()
        self.process.kill()
        self.process.wait()
        del os.environ["APPO_TEST_SECRET"]


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("host"))
    yield host
    host.close()


def list_processes(tool: PythonTool) -> list[int]:
    """Return the processes of the sandbox besides the hub, without zombies."""
    sandbox = tool._get_sandbox()
    if sandbox.name == "docker":
        transport = sandbox._transport
        rows = transport._client.api.top(transport.container, "-eo pid,stat,args")["Processes"]
        return [int(row[0]) for row in rows[1:] if not row[1].startswith("Z")]
    return list_group(sandbox.pid)


def list_others(tool: PythonTool) -> list[int]:
    """Return the process ids of learner, hub and a state, as cells would see them."""
    sandbox = tool._get_sandbox()
    if sandbox.name == "docker":
        return [sandbox.pid, sandbox.pid + 1]  # the first process, and maybe a state
    states = [pid for pid in list_group(sandbox.pid) if pid != sandbox.pid]
    return [os.getpid(), sandbox._transport._process.pid, sandbox.pid, *states[:1]]


def count_expected(tool: PythonTool) -> int:
    """Count the first process, one process for each state, and the spares."""
    status = tool.status()
    return 1 + status["states"] + status["spares"]


def run(tool, state, cell, message):
    """Run a cell, again if only the clock stopped it before it printed its message."""
    for _ in range(TRIES):
        following, result = tool.run(state, cell)
        if message in result.text or CLOCK not in result.text:
            break
    return following, result


@pytest.fixture(scope="module", params=KINDS)
def arena(request, host):
    """A tool with a victim session that lives for all attacks; afterwards nothing may be left."""
    gc.collect()
    descriptors = open_descriptors()
    tool = PythonTool(request.param, LIMITS)
    victim = tool.initial_state(ToolContext(seed=7))
    victim, result = run(tool, victim, SETTLED.format("import os; secret", "victim"), "settled")
    assert result.text == "settled\n"
    yield tool, victim
    assert wait_for(lambda: len(list_processes(tool)) - count_expected(tool), 0) == 0
    sandbox = tool._get_sandbox()
    transport = sandbox._transport
    tool.close()
    if sandbox.name == "docker":
        assert wait_for(lambda: count_containers(transport.container), 0) == 0
    else:
        assert wait_for(lambda: list_group(sandbox.pid), []) == []
        assert not Path(transport.folder).exists()
    sandbox = transport = None
    gc.collect()
    assert open_descriptors() - descriptors == set()


def open_descriptors() -> set[tuple[str, str]]:
    """Return (number, target) of this process's descriptors.

    A set can be compared even if other tests close some of theirs meanwhile.
    """
    descriptors = set()
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            descriptors.add((number, os.readlink(f"/proc/self/fd/{number}")))
    return descriptors


def count_containers(container: str) -> int:
    import docker

    with contextlib.closing(docker.from_env()) as client:
        return len(client.api.containers(all=True, filters={"id": container}))


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.name)
def test_attack(arena, host, attack):
    tool, victim = arena
    sandbox, replays = tool._get_sandbox(), tool.replays
    parent = tool.initial_state(ToolContext(seed=8))
    parent, _ = run(tool, parent, SETTLED.format("own", "parent"), "settled")
    folder = run(tool, victim, "os.getcwd()", "/")[1].text.strip("'\n").rpartition("/")[0]
    state, result = run(tool, parent, host.fill(attack.cell, folder, tool), attack.message)
    assert "LEAK" not in result.text
    assert host.secret not in result.text.replace(host.abstract, "")
    assert attack.message in result.text
    if attack.goes_on is not None:
        assert (state != parent) is attack.goes_on, result.text
    result = run(tool, parent, "own, open('mine').read()", "parent")[1]
    assert result.text == "('parent', 'parent')\n"
    result = run(tool, victim, "secret, open('mine').read(), os.listdir()", "victim")[1]
    assert result.text == "('victim', 'victim', ['mine'])\n"
    assert tool.replays == replays, "a state was lost"
    if state != parent:
        tool.run(state, "print('the next cell of the attacker')")
    assert tool._get_sandbox() is sandbox, "the sandbox was lost"
    host.check()
