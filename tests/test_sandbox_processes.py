"""How many processes a sandbox holds: what has ended takes no place, and many are ended at once."""

import os
import signal
import subprocess
import time
import types

import pytest

from tools import repl_kernel, repl_session, repl_usage
from tools.python import PythonTool
from tools.sandbox import Limits
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


@pytest.mark.parametrize("cell", [SLEEPERS, CLONES], ids=["ended asleep", "never born"])
def test_what_has_ended_takes_no_place_from_others(cell):
    """Ten cells start 120 processes or try 200, in a sandbox with room for 2 x 40 at a time."""
    made = PythonTool("local", Limits(processes=16, all_processes=40, spares=2))
    try:
        state, _ = made.run(made.initial_state(ToolContext(seed=7)), "x = 1")
        sandbox = made._opened()
        for number in range(10):
            made.run(state, f"{cell}\nx = {number}")
        assert made.run(state, "import subprocess; subprocess.call(['true'])")[1].text == "0\n"
        assert made._opened() is sandbox
        assert made.replays == 0
    finally:
        made.close()


def test_idle_states_make_way_when_a_sandbox_has_too_many_processes():
    """Two sessions of 60 hold 120 of 100: the twenty that were unused for longest go."""
    session = {"memory": 0, "disk": 0, "processes": 1}
    states = {
        number: types.SimpleNamespace(
            handle=number, session=number % 2, job=None, parent=None, used=number, held=session
        )
        for number in range(120)
    }
    limits = {"session_memory": 1, "session_disk": 1, "session_processes": 60}
    found = repl_session.excess(states, {}, {**limits, "all_processes": 100})
    assert [live.handle for live in found.states] == list(range(20))
    assert found.cell is None


def test_a_fork_without_room_is_tried_again():
    answers = iter([BlockingIOError(), BlockingIOError(), 7])

    def fork():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert repl_kernel.persist(fork) == 7


def test_a_group_held_still_does_nothing_until_it_goes_on():
    group = subprocess.Popen(["sh", "-c", "sleep 60 & sleep 60 & wait"], start_new_session=True)
    try:
        members = []
        while len(members) < 3:
            members = repl_usage.family(group.pid)
        with repl_usage.still(group.pid):
            assert settles(lambda: {repl_usage.fields(pid)[0] for pid in members}, {"T"})
        assert settles(lambda: {repl_usage.fields(pid)[0] for pid in members}, {"S"})
    finally:
        os.killpg(group.pid, signal.SIGKILL)
        group.wait()


def settles(action, wanted):
    """Whether `action()` comes to `wanted`."""
    deadline = time.monotonic() + 60
    while (value := action()) != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
    return value == wanted
