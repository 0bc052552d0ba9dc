"""Sandboxes when learners, hubs, containers or kernels around them fail."""

import contextlib
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.sandboxes import KINDS
from tools import python
from tools.python import PythonTool
from tools.sandbox import docker_engine, local
from tools.sandbox.protocol import DockerOptions, Limits
from tools.tool import ToolContext, ToolUnavailable

LIMITS = Limits(cpu=5.0, wall=20.0, memory=256 << 20, processes=16)


@pytest.fixture(params=KINDS)
def tool(request):
    tool = PythonTool(request.param, LIMITS)
    yield tool
    tool.close()


def begin(tool, cell="x = 41"):
    return tool.run(tool.initial_state(ToolContext(seed=1)), cell)[0]


def kill_hub(tool):
    """Kill the hub's process or the container."""
    transport = tool._sandbox._transport
    if tool.sandbox_name == "docker":
        transport._client.api.kill(transport.container)
    else:
        os.kill(transport._process.pid, signal.SIGKILL)


def test_a_killed_hub_or_container_is_rebuilt_by_replay(tool):
    state = begin(tool)
    kill_hub(tool)
    assert tool.run(state, "x + 1")[1].text == "42\n"
    assert tool.replays == 1


@pytest.mark.full
def test_a_hub_killed_while_a_cell_runs_is_not_the_models_mistake(tool):
    state = begin(tool)
    killer = subprocess.Popen(["sleep", "1.0"])
    import threading

    threading.Thread(target=lambda: (killer.wait(), kill_hub(tool))).start()
    after, result = tool.run(state, "import time; time.sleep(2); x + 1")
    assert result.text == "42\n"
    assert len(after[1]) == 2


@pytest.mark.full
def test_a_hub_that_hangs_is_given_up(request):
    tool = PythonTool("local", Limits(cpu=1.0, wall=1.0, answer=3.0))
    try:
        state = begin(tool)
        hub = tool._sandbox._transport._process.pid
        os.kill(hub, signal.SIGSTOP)
        assert tool.run(state, "x + 1")[1].text == "42\n"
        assert not Path(f"/proc/{hub}").exists()
    finally:
        tool.close()


def test_a_closed_tool_opens_again(tool):
    state = begin(tool)
    tool.close()
    assert tool.run(state, "x + 1")[1].text == "42\n"


def test_close_ends_a_cell_that_runs(tool):
    import threading

    state = begin(tool)
    failures = []

    def work():
        try:
            tool.run(state, "import time; time.sleep(15)")
        except ToolUnavailable as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    time.sleep(0.5)
    tool.close()
    thread.join(10)
    assert not thread.is_alive()
    assert "closed during the call" in str(failures[0])


LEARNER = """
import sys, threading
sys.path.insert(0, {repository!r})
from tools.python import PythonTool
from tools.sandbox.protocol import Limits
from tools.tool import ToolContext
tool = PythonTool({kind!r}, Limits(cpu=60.0, wall=60.0))
tool.run(tool.initial_state(ToolContext(seed=0)), "1")
transport = tool._sandbox._transport
location = transport.container if {kind!r} == "docker" else transport.folder
started = threading.Semaphore(0)
def work(number):
    state, _ = tool.run(tool.initial_state(ToolContext(seed=number)), "x = 1")
    started.release()
    tool.run(
        state,
        "import subprocess, time\\nsubprocess.Popen(['sleep', '61.5'])\\n"
        "while True: time.sleep(0.01)",
    )
for number in range(100):
    threading.Thread(target=work, args=(number,), daemon=True).start()
for number in range(100):
    started.acquire()
print(tool._sandbox.pid, location, flush=True)
import time; time.sleep(600)
"""


def running(marker):
    """Return the processes whose command line has the marker."""
    processes = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if marker in (entry / "cmdline").read_bytes():
                processes.append(entry.name)
    return processes


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_outlives_a_learner_killed_during_a_hundred_cells(kind):
    code = LEARNER.format(repository=str(ROOT), kind=kind)
    learner = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    leader, location = learner.stdout.readline().split()
    deadline = time.monotonic() + 30
    while len(running(b"61.5")) < 90 and time.monotonic() < deadline:
        time.sleep(0.2)
    assert len(running(b"61.5")) >= 90
    learner.kill()
    learner.wait()
    learner.stdout.close()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and (running(b"61.5") or left(kind, leader, location)):
        time.sleep(0.1)
    assert running(b"61.5") == []
    assert left(kind, leader, location) == []


def left(kind, leader, location):
    """Return processes, folders and containers of a sandbox that should be gone."""
    if kind == "docker":
        import docker

        with contextlib.closing(docker.from_env()) as client:
            return client.api.containers(all=True, filters={"id": location})
    remains = [location] if Path(location).exists() else []
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = entry.read_text().rpartition(")")[2].split()
            remains += [entry.parent.name] if fields[2] == leader and fields[0] != "Z" else []
    return remains


def test_evicted_states_come_back(request):
    tool = PythonTool("local", Limits(live_states=4))
    try:
        root = begin(tool, "import random; x = [random.random()]")
        leaves = [tool.run(root, f"x.append({i}); x")[0] for i in range(12)]
        texts = [tool.run(leaf, "x[1], random.random()")[1].text for leaf in leaves]
        again = [tool.run(leaf, "x[1], random.random()")[1].text for leaf in reversed(leaves)]
        assert texts == again[::-1]
        assert tool.replays > 0
        assert tool.status()["states"] <= 5
    finally:
        tool.close()


@pytest.mark.full
def test_states_over_the_memory_bound_are_evicted_and_come_back(request):
    tool = PythonTool("local", Limits(live_memory=160 << 20))
    try:
        states = [begin(tool, f"x = bytearray({60 + i} << 20); len(x)") for i in range(5)]
        deadline = time.monotonic() + 20
        while tool.status()["evicted"] < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert tool.status()["evicted"] >= 2
        for i, state in enumerate(states):
            assert tool.run(state, "len(x)")[1].text == f"{60 + i << 20}\n"
    finally:
        tool.close()


def test_without_linux_the_error_says_docker(monkeypatch):
    monkeypatch.setattr(local.sys, "platform", "darwin")
    with pytest.raises(ToolUnavailable, match="install Docker and use sandbox='docker'"):
        local.open_local(LIMITS)


def test_on_windows_the_error_says_where_to_go(monkeypatch):
    monkeypatch.setattr(docker_engine.sys, "platform", "win32")
    monkeypatch.delattr(os, "register_at_fork")
    tool = PythonTool("auto")
    with pytest.raises(ToolUnavailable, match=r"(?s)local: .* needs Linux.*docker: .*WSL 2"):
        begin(tool)


def test_an_old_kernel_is_named_with_what_it_lacks(monkeypatch):
    import sandlock

    monkeypatch.setattr(sandlock, "landlock_abi_version", lambda: 2)
    with pytest.raises(ToolUnavailable, match=r"Landlock version 2.*Linux 6.2.*Docker"):
        local.open_local(LIMITS)


def test_a_machine_without_a_filter_of_system_calls_is_sent_to_docker(monkeypatch):
    class Unfiltered(local.HubSandbox):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.filtered = False

    monkeypatch.setattr(local, "HubSandbox", Unfiltered)
    with pytest.raises(ToolUnavailable, match=r"no filter of system calls.*Docker"):
        local.open_local(LIMITS)


MOVED = b"""
FROM appo-sandbox:local
RUN mkdir -p /opt/python/bin && mv /usr/bin/python3* /opt/python/bin/
ENV PATH=/opt/python/bin:/usr/bin:/bin
"""


@pytest.mark.docker
@pytest.mark.full
def test_an_image_may_keep_its_python_where_it_likes():
    import docker

    tag = "appo-sandbox-test:moved"
    with contextlib.closing(docker.from_env()) as client:
        client.images.build(fileobj=io.BytesIO(MOVED), tag=tag, network_mode="none", rm=True)
        tool = PythonTool("docker", LIMITS, DockerOptions(image=tag))
        try:
            cell = "import subprocess; subprocess.check_output(['python3', '-c', 'print(6 * 7)'])"
            assert tool.run(begin(tool), cell)[1].text == "b'42\\n'\n"
        finally:
            tool.close()
            client.images.remove(tag, force=True)


NO_LANDLOCK = """
import ctypes, errno, struct, sys
sys.path.insert(0, {repository!r})
from tools.repl.filter import ALLOW, _instruction
from tools.repl.kernel import LIBC, prctl
give_up = _instruction(0x06, 0, 0, 0x50000 | errno.ENOSYS)
steps = [_instruction(0x20, 0, 0, 0)]
for number in (444, 445, 446):
    steps += [_instruction(0x15, 0, 1, number), give_up]
body = b"".join([*steps, _instruction(0x06, 0, 0, ALLOW)])
code = ctypes.create_string_buffer(body)
head = struct.pack("HxxxxxxP", len(body) // 8, ctypes.addressof(code))
prctl(38, 1)
assert LIBC.prctl(22, 2, ctypes.create_string_buffer(head), 0, 0) == 0
from tools.python import PythonTool
from tools.tool import ToolContext, ToolUnavailable
tool = PythonTool("local")
try:
    print("ran", tool.run(tool.initial_state(ToolContext()), "1"))
except ToolUnavailable as error:
    print(error)
"""


def test_a_kernel_without_landlock_runs_nothing_and_says_docker():
    """A kernel whose Landlock calls do not exist: a filter refuses them as such a kernel would."""
    code = NO_LANDLOCK.format(repository=str(ROOT))
    command = [sys.executable, "-c", code]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "has no Landlock, or not switched on, the local sandbox needs version 3" in output
    assert "install Docker and use sandbox='docker'" in output
    assert not output.startswith("ran")


@pytest.mark.parametrize("version", [3, 4, 5])
def test_each_older_kernel_warns_of_exactly_what_it_lacks_and_holds(monkeypatch, caplog, version):
    """Only the version is faked, not the kernel: this tests which opt-outs are taken."""
    import sandlock

    monkeypatch.setattr(sandlock, "landlock_abi_version", lambda: version)
    tool = PythonTool("local", LIMITS)
    cell = (
        "import os, socket\n"
        "for act in (lambda: socket.socket(), lambda: open('/etc/shadow'),\n"
        "            lambda: os.kill(os.getppid(), 9)):\n"
        "    try: act(); print('LEAK')\n"
        "    except OSError: print('refused')"
    )
    try:
        with caplog.at_level("WARNING", logger="tools.sandbox.local"):
            result = tool.run(begin(tool), cell)[1]
    finally:
        tool.close()
    assert result.text == "refused\n" * 3
    lacking = {"NET_TCP": 4, "FS_IOCTL_DEV": 5, "SIGNAL_SCOPE": 6, "ABSTRACT_UNIX_SOCKET_SCOPE": 6}
    warned = [record.getMessage().partition(":")[0] for record in caplog.records]
    assert warned == [
        f"Landlock version {version} has no {name}"
        for name, needed in lacking.items()
        if version < needed
    ]


def test_a_kernel_before_signal_scopes_warns_and_refuses_signals(monkeypatch, caplog):
    import sandlock

    monkeypatch.setattr(sandlock, "landlock_abi_version", lambda: 5)
    tool = PythonTool("local", LIMITS)
    try:
        with caplog.at_level("WARNING", logger="tools.sandbox.local"):
            state = begin(tool)
        assert "Landlock version 5 has no SIGNAL_SCOPE: signals are not kept inside" in caplog.text
        cell = (
            "import os, subprocess, socket, fcntl\np = subprocess.Popen(['sleep', '50'])\n"
            "for act in (p.kill, lambda: os.kill(os.getppid(), 9), lambda: os.killpg(0, 9),\n"
            "            lambda: fcntl.fcntl(0, fcntl.F_SETOWN, 1), lambda: os.kill(-1, 9)):\n"
            "    try: act(); print('LEAK')\n"
            "    except PermissionError: print('refused')"
        )
        state, result = tool.run(state, cell)
        assert result.text.count("refused") == 5
        assert "were ended" in result.text
        assert "LEAK" not in result.text
    finally:
        tool.close()


@pytest.mark.full
@pytest.mark.parametrize("kind", KINDS)
def test_a_minute_of_everything_at_once(kind):
    command = [sys.executable, "-m", "tests.soak_sandbox", "--sandbox", kind]
    # A hub still grows in its first hundreds of cells; a leak shows in the long run alone.
    command += ["--minutes", "1", "--cells", "300", "--sessions", "32", "--growth", "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_an_engine_the_error_says_so(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(ToolUnavailable, match=r"no Docker engine answers.*install Docker"):
        docker_engine.open_docker(LIMITS, DockerOptions())


def test_with_neither_the_error_names_both(monkeypatch):
    monkeypatch.setattr(local.sys, "platform", "darwin")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    tool = PythonTool("auto")
    with pytest.raises(ToolUnavailable, match=r"(?s)local: .*docker: "):
        begin(tool)


@pytest.mark.docker
def test_an_image_that_is_missing_is_named(request):
    with pytest.raises(ToolUnavailable, match="no image 'nobody/nothing:never'"):
        docker_engine.open_docker(LIMITS, DockerOptions(image="nobody/nothing:never"))


def test_an_engine_that_is_away_for_a_moment_is_waited_for(monkeypatch):
    tool = PythonTool("local", LIMITS)
    try:
        state = begin(tool)
        kill_hub(tool)
        real, failures = python.open_sandbox, iter([ToolUnavailable("away")] * 2)

        def away(*arguments):
            for failure in failures:
                raise failure
            return real(*arguments)

        monkeypatch.setattr(python, "open_sandbox", away)
        monkeypatch.setattr(python, "PAUSES", (0.01, 0.01, 0.01))
        assert tool.run(state, "x + 1")[1].text == "42\n"
    finally:
        tool.close()


def test_auto_says_which_sandbox_it_took(caplog):
    tool = PythonTool("auto")
    with caplog.at_level("INFO", logger="tools.sandbox.opening"):
        begin(tool)
    assert tool.sandbox_name in ("local", "docker")
    assert f"python runs in the {tool.sandbox_name} sandbox" in caplog.text
    tool.close()


@pytest.mark.docker
@pytest.mark.full
def test_a_container_has_no_rights(request):
    tool = PythonTool("docker", LIMITS)
    try:
        begin(tool)
        transport = tool._sandbox._transport
        about = transport._client.api.inspect_container(transport.container)
        host = about["HostConfig"]
        assert host["NetworkMode"] == "none"
        assert host["ReadonlyRootfs"] is True
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges"]
        assert host["PidsLimit"] == LIMITS.all_processes
        assert host["Memory"] > 0
        assert host["NanoCpus"] > 0
        assert about["Config"]["User"] == "65534:65534"
        assert about["Mounts"] == []
    finally:
        tool.close()
