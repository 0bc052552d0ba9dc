"""Several sandboxes behind one tool: sessions are spread, lost ones are replaced."""

import contextlib
import os
import signal
import threading

import pytest

from tests.sandboxes import KINDS, wait_for
from tools.python import PythonTool
from tools.sandbox.local import open_local
from tools.sandbox.pool import Pool
from tools.sandbox.protocol import Limits, SandboxLost
from tools.tool import ToolContext, ToolUnavailable

LIMITS = Limits(cpu=5.0, wall=20.0, memory=256 << 20, processes=16)


def begin(tool, seed, cell="x = 41"):
    return tool.run(tool.initial_state(ToolContext(seed=seed)), cell)[0]


def hub_of(tool, state):
    """Return the process id of the hub that a live state belongs to."""
    pool = tool._sandbox
    return pool._members[tool._live[state] % (1 << 20)].sandbox._transport._process.pid


@pytest.mark.parametrize("kind", KINDS)
def test_sessions_are_spread_over_sandboxes_that_open_in_the_background(kind):
    tool = PythonTool(kind, LIMITS, sandboxes=3)
    try:
        begin(tool, 0)
        assert wait_for(lambda: tool.status()["sandboxes"], 3) == 3
        states = [begin(tool, seed, f"x = {seed}") for seed in range(6)]
        assert len({tool._live[state] % (1 << 20) for state in states}) == 3
        assert [tool.run(s, "x")[1].text for s in states] == [f"{seed}\n" for seed in range(6)]
        assert tool.replays == 0
    finally:
        tool.close()


def test_a_lost_sandbox_takes_its_own_states_alone_and_is_replaced():
    tool = PythonTool("local", LIMITS, sandboxes=2)
    try:
        begin(tool, 0)
        assert wait_for(lambda: tool.status()["sandboxes"], 2) == 2
        states = [begin(tool, seed, f"x = {seed}") for seed in range(4)]
        hubs = [hub_of(tool, state) for state in states]
        os.kill(hubs[0], signal.SIGKILL)
        assert [tool.run(s, "x")[1].text for s in states] == [f"{seed}\n" for seed in range(4)]
        assert tool.replays == hubs.count(hubs[0])
        assert wait_for(lambda: tool.status()["sandboxes"], 2) == 2
    finally:
        tool.close()


@pytest.mark.slow
def test_a_cell_whose_sandbox_is_lost_again_and_again_is_not_the_models_mistake():
    tool = PythonTool("local", LIMITS, sandboxes=2)
    over = threading.Event()

    def kill():
        while not over.wait(0.05):
            pool = tool._sandbox
            for sandbox in pool._list_sandboxes().values() if pool else ():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(sandbox._transport._process.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    try:
        state = begin(tool, 0)
        killer.start()
        with pytest.raises(ToolUnavailable, match="could not be run, 10 times in a row"):
            tool.run(state, "import time; time.sleep(5)")
    finally:
        over.set()
        killer.join()
        tool.close()


def test_sessions_that_must_be_apart_never_share_a_sandbox():
    """As in a container whose kernel has no Landlock; used sandboxes are closed to make room."""
    opened = []

    def opener():
        opened.append(open_local(LIMITS))
        opened[-1].single_session = True
        return opened[-1]

    pool = Pool(opener(), opener, 2)
    try:
        sessions = [pool.open(seed, []).state for seed in range(5)]
        assert len({state % (1 << 20) for state in sessions}) == 5
        assert pool.run(sessions[-1], ["6 * 7"]).results[0].text == "42\n"
        assert pool.run(sessions[0], ["1"]).why == "gone"
        assert len(pool._list_sandboxes()) <= 3
    finally:
        pool.close()
    assert [sandbox._lost for sandbox in opened] == ["closed"] * len(opened)


def test_a_pool_that_can_open_nothing_says_why():
    def opener():
        raise ToolUnavailable("the engine is away")

    pool = Pool(open_local(LIMITS), opener, 2)
    try:
        (sandbox,) = pool._list_sandboxes().values()
        sandbox.close()
        assert pool.open(0, []).why == "lost"
        with pytest.raises(SandboxLost, match="the engine is away"):
            pool.open(0, [])
    finally:
        pool.close()
