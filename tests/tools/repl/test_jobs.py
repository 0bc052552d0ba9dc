"""Processes of a sandbox: ended ones take no place, and many can be ended at once."""

import os
import select
import signal
import subprocess
import sys
import threading
import time
import types
from pathlib import Path

import pytest

from tests.sandboxes import wait_for
from tools.python import PythonTool
from tools.repl import cell, jobs, kernel, patrol, usage
from tools.sandbox.docker_engine import open_docker
from tools.sandbox.local import open_local
from tools.sandbox.protocol import DockerOptions, Limits
from tools.tool import ToolContext

SLEEPERS = """
import os, time
for i in range(12):
    if os.fork() == 0: time.sleep(60)
time.sleep(0.3)
"""
CLONES = """
import ctypes
for i in range(20): ctypes.CDLL(None).syscall(56, 0x800, 0, 0, 0, 0)
"""

MASK = "import signal; signal.SIGCONT in signal.pthread_sigmask(signal.SIG_BLOCK, [])"
FORKS = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCONT])
data = b"x" * (64 << 20)
while True:
    pid = os.fork()
    if not pid: os._exit(0)
    os.waitpid(pid, 0)
    os.write(1, b".")
"""


@pytest.mark.parametrize("cell", [SLEEPERS, CLONES], ids=["ended asleep", "never born"])
def test_what_has_ended_takes_no_place_from_others(cell):
    """Ten cells start 120 processes or try 200, in a sandbox with room for 2 x 40 at a time."""
    tool = PythonTool("local", Limits(processes=16, all_processes=40, spares=2))
    try:
        state, _ = tool.run(tool.initial_state(ToolContext(seed=7)), "x = 1")
        sandbox = tool._get_sandbox()
        for number in range(10):
            tool.run(state, f"{cell}\nx = {number}")
        assert tool.run(state, "import subprocess; subprocess.call(['true'])")[1].text == "0\n"
        assert tool._get_sandbox() is sandbox
        assert tool.replays == 0
    finally:
        tool.close()


def test_idle_states_make_way_when_a_sandbox_has_too_many_processes():
    """Two sessions of 60 hold 120 of 100: the twenty that are unused for longest go."""
    session = {"memory": 0, "disk": 0, "processes": 1}
    states = {
        number: types.SimpleNamespace(
            handle=number,
            session=number % 2,
            job=None,
            parent=None,
            last_used=number,
            footprint=session,
        )
        for number in range(120)
    }
    limits = {"session_memory": 1, "session_disk": 1, "session_processes": 60}
    excess = patrol.find_excess(states, {}, {**limits, "all_processes": 100})
    assert [state.handle for state in excess.states] == list(range(20))
    assert excess.cell is None


def test_a_state_that_was_branched_is_forked_in_advance_before_its_newest_child():
    """After one fork the newest child is likelier next; the first process only forks sessions."""
    folder = jobs.Folder("/", None)
    first = jobs.LiveState(0, None, None, folder, None)
    session = jobs.LiveState(1, None, first, folder, None)
    session.forks, first.forks = 1, 9
    assert not session.is_branching()
    session.forks = 2
    assert session.is_branching()
    assert not first.is_branching()


def test_files_that_are_only_named_are_not_opened_anew_in_every_child(tmp_path):
    path = tmp_path / "file"
    path.write_text("x")
    named, opened = os.open(path, os.O_PATH), os.open(path, os.O_RDONLY)
    try:
        files = cell.Descriptors(max(named, opened) + 1).list_regular_files()
        assert opened in files
        assert named not in files
    finally:
        os.close(named)
        os.close(opened)


def test_blocking_signals_by_number_is_what_python_says_is_blocked():
    before = kernel.block_signals(kernel.build_signal_set(signal.SIGCONT))
    try:
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == {signal.SIGCONT}
        assert kernel.block_signals(kernel.ALL_SIGNALS) == kernel.build_signal_set(18)
        assert signal.SIGTERM in signal.pthread_sigmask(signal.SIG_BLOCK, [])
    finally:
        kernel.block_signals(before)


def test_a_fork_without_room_is_tried_again():
    answers = iter([BlockingIOError(), BlockingIOError(), 7])

    def fork():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert kernel.fork_with_retries(fork) == 7


def test_a_group_held_still_does_nothing_until_it_goes_on():
    group = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], start_new_session=True)
    try:
        members = []
        while len(members) < 3:
            members = usage.list_tree(group.pid)
        with usage.pause_group(group.pid):
            assert wait_for(lambda: {usage.read_stat(pid)[0] for pid in members}, {"T"}) == {"T"}
        assert wait_for(lambda: {usage.read_stat(pid)[0] for pid in members}, {"S"}) == {"S"}
    finally:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def test_what_is_forked_while_a_group_is_held_still_goes_on():
    """If SIGCONT is not blocked, about one pause in five leaves a child stopped for good."""
    group = subprocess.Popen(
        [sys.executable, "-c", FORKS], stdout=subprocess.PIPE, start_new_session=True
    )
    try:
        for number in range(100):
            assert select.select([group.stdout], [], [], 20)[0], f"stopped by pause {number}"
            os.read(group.stdout.fileno(), 1 << 16)
            time.sleep(number % 10 * 0.001)
            with usage.pause_group(group.pid):
                pass
    finally:
        os.killpg(group.pid, signal.SIGKILL)
        group.communicate()


def test_every_process_of_a_sandbox_blocks_the_signal_that_ends_a_hold():
    sandbox = open_local(Limits())
    try:
        session = sandbox.open(0, []).state
        assert sandbox.run(session, [MASK]).results[0].text == "True\n"
        status = [Path(f"/proc/{pid}/status").read_text() for pid in usage.list_tree(sandbox.pid)]
        masks = [int(text.partition("SigBlk:")[2].split()[0], 16) for text in status]
        assert len(masks) > 2
        assert all(mask >> (signal.SIGCONT - 1) & 1 for mask in masks)
    finally:
        sandbox.close()


@pytest.mark.parametrize(
    "opened",
    [
        lambda limits: open_local(limits),
        pytest.param(
            lambda limits: open_docker(limits, DockerOptions()),
            marks=[pytest.mark.docker, pytest.mark.full],
        ),
    ],
    ids=["local", "docker"],
)
def test_states_dropped_while_they_fork_in_advance_leave_no_strays(opened):
    """Each state is dropped as soon as it has answered; a stray would pause the whole sandbox."""
    sandbox = opened(Limits())
    try:
        session = sandbox.open(0, []).state
        for number in range(150):
            reply = sandbox.run(session, ["x = 1"])
            assert reply.why is None, number
            sandbox.drop([reply.state])
        assert wait_for(lambda: sandbox.status()["states"], 1) == 1
        assert sandbox.status()["strays"] == 0
    finally:
        sandbox.close()


def test_where_memory_runs_out_cells_go_before_states_and_the_first_process():
    """A fork bomb must not take the rest of its container along: children inherit the score."""
    sandbox = open_local(Limits(spares=0))

    def scores():
        counts = {}
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                if os.getpgid(int(entry.name)) == sandbox.pid:
                    score = int((entry / "oom_score_adj").read_text())
                    counts[score] = counts.get(score, 0) + 1
            except OSError:
                continue
        return counts

    try:
        session = sandbox.open(0, []).state
        assert scores() == {kernel.OOM_SCORE_IDLE: 2}, "the first process and the session"
        cell = "import os, time\nif os.fork() == 0: time.sleep(9)\ntime.sleep(2)"
        thread = threading.Thread(target=sandbox.run, args=(session, [cell]))
        thread.start()
        time.sleep(1)
        assert scores() == {kernel.OOM_SCORE_IDLE: 2, kernel.OOM_SCORE_RUNNING: 2}
        thread.join()
        assert scores() == {kernel.OOM_SCORE_IDLE: 3}
    finally:
        sandbox.close()
