"""Limits of a session: each ends one cell, says which limit it was, and harms no state."""

import threading
import time
import types

import pytest

from tests.sandboxes import KINDS
from tools import python
from tools.python import PythonTool
from tools.repl import patrol
from tools.repl.jobs import Job, LiveState, Output
from tools.sandbox.opening import open_sandbox
from tools.sandbox.protocol import CellResult, DockerOptions, Limits, SandboxReply
from tools.tool import ToolContext, ToolUnavailable

LIMITS = Limits(
    cpu=1.0,
    memory=512 << 20,
    processes=40,
    session_memory=300 << 20,
    session_disk=20 << 20,
    session_processes=12,
)
BURN = "import time\nbegun = time.process_time()\nwhile time.process_time() - begun < 0.7: pass"
UNCHANGED = "Variables and files are as they were before this cell.]"


@pytest.fixture(scope="module", params=KINDS)
def tool(request):
    tool = PythonTool(request.param, LIMITS)
    yield tool
    tool.close()


def begin(tool, seed, cell="x = 1"):
    return tool.run(tool.initial_state(ToolContext(seed=seed)), cell)[0]


def stopped(tool, state, cell):
    """Run a cell past a limit; return the note about it. The state before it must be intact."""
    after, result = tool.run(state, cell)
    assert after == state
    assert not result.ok
    assert tool.run(state, "x")[1].text == "1\n"
    return result.text[result.text.index("[stopped") :]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("limit", "cell", "message"),
    [
        ({"session_cpu": 1.2}, BURN, "used more than 1.2 s of CPU time in all"),
        ({"session_wall": 9.0}, "import time; time.sleep(6)", "taken more than 9 s in all"),
        ({"session_output": 1 << 20}, "print('a' * 600_000)", "written more than 1 MiB of output"),
    ],
)
def test_cells_one_after_the_other_add_up(kind, limit, cell, message):
    tool = PythonTool(kind, Limits(**limit))
    try:
        trunk = begin(tool, 1)
        once, _ = tool.run(trunk, cell)
        assert once != trunk
        text = stopped(tool, once, cell)
        assert text.startswith(f"[stopped: the cells of this session have {message}")
        assert text.endswith(f" in all. {UNCHANGED}")
        other, _ = tool.run(trunk, cell + "\n")
        assert other != trunk, "a branch pays only for the cells that led to it"
    finally:
        tool.close()


@pytest.mark.parametrize(
    ("cell", "large", "message"),
    [
        (
            "y = bytearray({} << 20)",
            "import time\ny = bytearray(320 << 20); time.sleep(3)",
            "used more than 300 MiB of memory, this cell most of it",
        ),
        (
            "open('f', 'wb').write(b'x' * ({} << 16))",
            "import time\nfor i in range(5): open(f'f{i}', 'wb').write(b'x' * (5 << 20))\n"
            "time.sleep(3)",
            "held more than 20 MiB of files, this cell most of it",
        ),
        (
            "y = {}",
            "import subprocess, time\nfor i in range(15): subprocess.Popen(['sleep', '9'])\n"
            "time.sleep(3)",
            "had more than 12 processes and threads, this cell most of them",
        ),
    ],
)
def test_live_states_make_way_before_a_cell_does(tool, cell, large, message):
    trunk = begin(tool, 2)
    evicted = tool.status()["evicted"]
    branches = [tool.run(trunk, cell.format(80 + i))[0] for i in range(14)]
    deadline = time.monotonic() + 20
    while tool.status()["evicted"] == evicted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tool.status()["evicted"] > evicted
    assert trunk not in branches, "a cell was stopped for what its siblings use"
    assert (
        stopped(tool, trunk, large)
        == f"[stopped: all branches of this session together {message}. {UNCHANGED}"
    )


def test_a_session_past_its_limit_leaves_another_alone(tool):
    other = begin(tool, 3, "y = bytearray(250 << 20); x = 1")
    trunk = begin(tool, 4)
    stopped(tool, trunk, "import time\ny = bytearray(320 << 20); time.sleep(3)")
    replays = tool.replays
    assert tool.run(other, "len(y) >> 20")[1].text == "250\n"
    assert tool.replays == replays


def test_a_replay_is_not_measured_against_the_limits_of_the_session(tool):
    state, _ = tool.run(begin(tool, 5), BURN)
    small = PythonTool("local", Limits(session_cpu=0.3))
    try:
        assert small.run(state, "x")[1].text == "1\n"
        assert small.mismatches == 0
        assert "CPU time in all" in stopped(small, state, BURN)
    finally:
        small.close()


def test_a_hundred_megabytes_of_code_are_refused_before_they_are_sent(tool):
    state = begin(tool, 6)
    after, result = tool.run(state, "x = 2 #" + "a" * 100_000_000)
    assert after == state
    assert result.text == "[not run: the cell has 100000007 characters, 100000 are allowed]"
    assert tool.run(state, "x")[1].text == "1\n"


def test_states_evicted_while_they_are_forked_answer_all_the_same():
    """Forks, drops and rebuilds come between the measuring of states and their eviction."""
    tool = PythonTool("local", Limits(live_states=3, spares=2))
    tool._get_sandbox()
    tool._limits = Limits()  # only the hub evicts
    wrong = []

    def work(number):
        states = [begin(tool, number, f"x = [{number}]; open('f', 'w').write('{number}')")]
        for cell in range(12):
            parent = states[(cell * 7 + number) % len(states)]
            length = len(parent[1])
            state, result = tool.run(parent, f"x.append({cell}); len(x), open('f').read()")
            if result.text != f"({length + 1}, '{number}')\n":
                wrong.append(result.text)
            states.append(state)

    try:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert tool.status()["evicted"] > 10
        assert tool.mismatches == 0
    finally:
        tool.close()


def test_a_state_is_new_when_its_cells_have_ended_not_when_they_began():
    """A long replay among many sessions: the rebuilt state must not be the first evicted."""
    sandbox = open_sandbox("local", Limits(live_states=4), DockerOptions())
    try:
        session = sandbox.open(0, []).state
        slow = []
        cell = "import time; time.sleep(1.5); x = 7"
        thread = threading.Thread(target=lambda: slow.append(sandbox.run(session, ["1", cell])))
        thread.start()
        while thread.is_alive():
            sandbox.run(sandbox.open(1, []).state, ["1"])
        sandbox.open(1, [])
        time.sleep(0.2)
        assert slow[0].why is None
        assert sandbox.status()["evicted"] > 4
        assert sandbox.run(slow[0].state, ["x"]).results[0].text == "7\n"
    finally:
        sandbox.close()


def test_first_cells_of_one_session_share_its_limits_and_need_no_state_before_them():
    sandbox = open_sandbox("local", Limits(session_processes=2, spares=0), DockerOptions())
    try:
        first = [sandbox.open(0, [], ["1"], session).state for session in (7, 7, 7, 8, 8, 0, 0)]
        until = time.monotonic() + 20
        while sandbox.status()["states"] > 6 and time.monotonic() < until:
            time.sleep(0.05)
        assert sandbox.status()["states"] == 6
        why = [sandbox.run(state, ["1"]).why for state in (first[0], first[5], first[6])]
        assert why == ["gone", None, None]
    finally:
        sandbox.close()


class Scripted:
    """A sandbox that opens sessions, runs the cell "1", and answers all others with `why`."""

    name, single_session = "scripted", False

    def __init__(self, why):
        self.why = why
        self.runs = 0

    def open(self, seed, files, cells=(), session=0):
        return self.run(1, cells) if cells else SandboxReply(1, (), None)

    def run(self, state, cells):
        if list(cells) == ["1"]:
            return SandboxReply(2, (CellResult("ok", "", 0.0, None),), None)
        self.runs += 1
        return SandboxReply(None, (), self.why)

    def drop(self, states):
        pass

    def close(self):
        pass


@pytest.mark.parametrize("why", ["gone", "fault", "broken"])
def test_a_state_is_blamed_for_what_it_did_itself(monkeypatch, why):
    """An eviction or a kill is the machine's fault, unless it happens at every attempt."""
    sandbox = Scripted(why)
    monkeypatch.setattr(python, "open_sandbox", lambda *_arguments: sandbox)
    monkeypatch.setattr(python.time, "sleep", lambda _seconds: None)
    tool = PythonTool("local", sandboxes=1)
    state = (tool.initial_state(ToolContext())[0], (("1", python.digest_output("")),))
    assert tool.run(state, "x")[1].text.startswith("[not run: an earlier cell has broken")
    assert (sandbox.runs >= python.ATTEMPTS) == (why == "gone"), "replays count too"


def test_a_sandbox_that_serves_no_session_is_no_fault_of_a_state(monkeypatch):
    monkeypatch.setattr(python, "open_sandbox", lambda *_arguments: Scripted("gone"))
    monkeypatch.setattr(python.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(Scripted, "open", lambda *_arguments: SandboxReply(None, (), "gone"))
    tool = PythonTool("local", sandboxes=1)
    state = (tool.initial_state(ToolContext())[0], (("1", python.digest_output("")),))
    with pytest.raises(ToolUnavailable, match="10 times in a row"):
        tool.run(state, "x")


@pytest.mark.parametrize("why", ["gone", "fault", "broken"])
def test_a_state_is_not_blamed_where_the_machine_is_too_busy_to_tell(monkeypatch, why):
    monkeypatch.setattr(python, "open_sandbox", lambda *_arguments: Scripted(why))
    monkeypatch.setattr(python.time, "sleep", lambda _seconds: None)
    monkeypatch.setattr(python, "MAX_TEST_SECONDS", 0.0)
    tool = PythonTool("local", sandboxes=1)
    state = (tool.initial_state(ToolContext())[0], (("1", python.digest_output("")),))
    with pytest.raises(ToolUnavailable, match="10 times in a row"):
        tool.run(state, "x")


def test_memory_is_measured_again_before_states_are_evicted_for_it(monkeypatch):
    """A page shared by thirty counts a thirtieth for each: an early measure says too much."""
    states = [
        types.SimpleNamespace(footprint={"memory": 90}, measured_at=0.5, pid=n) for n in range(30)
    ]
    monkeypatch.setattr(patrol.usage, "read_proportional_memory", lambda _pid: 3)
    assert patrol.remeasure(states) == 20 * 87 + 10 * 90, "the last ten are left for later"
    assert [state.footprint["memory"] for state in states] == [3] * 20 + [90] * 10
    assert patrol.remeasure(states) == 10 * 87
    assert patrol.remeasure(states) == 0


def test_a_state_that_has_not_forked_has_its_own_time_and_not_the_cells():
    """3 s for a cell, 60 s to fork: after 5 s the fork may go on, after 61 s it has failed."""
    limits = {"wall": 3.0, "start": 60.0, "session_wall": 100.0}
    job = Job(Output(100))
    state = LiveState(1, None, None, None, job)
    assert job.check(state, limits, job.started_at + 5, running=1) is None
    assert job.check(state, limits, job.started_at + 61, running=1) == "fault"
    job.current = {"op": "cell"}
    assert job.check(state, limits, job.started_at + 5, running=1) == "wall"
