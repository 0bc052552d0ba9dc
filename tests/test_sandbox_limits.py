"""What a whole session may use: each limit ends one cell, says which it was, and harms no state."""

import threading
import time

import pytest

from tools.python import PythonTool
from tools.sandbox import Limits
from tools.tool import ToolContext

LIMITS = Limits(
    cpu=1.0,
    memory=512 << 20,
    processes=40,
    session_cpu=1.2,
    session_wall=4.0,
    session_output=1 << 20,
    session_memory=300 << 20,
    session_disk=20 << 20,
    session_processes=12,
)
KINDS = [
    "local",
    pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.full]),
]
BURN = "import time\nbegun = time.process_time()\nwhile time.process_time() - begun < 0.7: pass"
KEPT = "Variables and files are as they were before this cell.]"


@pytest.fixture(scope="module", params=KINDS)
def tool(request):
    made = PythonTool(request.param, LIMITS)
    yield made
    made.close()


def begin(tool, seed, cell="x = 1"):
    return tool.run(tool.initial_state(ToolContext(seed=seed)), cell)[0]


def stopped(tool, state, cell):
    """What a cell past a limit was told; the state before it is intact."""
    after, result = tool.run(state, cell)
    assert after == state
    assert not result.ok
    assert tool.run(state, "x")[1].text == "1\n"
    return result.text[result.text.index("[stopped") :]


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (BURN, "have used more than 1.2 s of CPU time in all"),
        ("import time; time.sleep(2.5)", "have taken more than 4 s in all"),
        ("print('a' * 600_000)", "have written more than 1 MiB of output in all"),
    ],
)
def test_cells_one_after_the_other_add_up(tool, cell, said):
    trunk = begin(tool, 1)
    once, _ = tool.run(trunk, cell)
    assert once != trunk
    assert stopped(tool, once, cell) == f"[stopped: the cells of this session {said}. {KEPT}"
    other, _ = tool.run(trunk, cell + "\n")
    assert other != trunk, "a branch pays for what led to it alone"


@pytest.mark.parametrize(
    ("cell", "large", "said"),
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
            "had more than 12 processes, this cell most of them",
        ),
    ],
)
def test_live_states_make_way_before_a_cell_does(tool, cell, large, said):
    trunk = begin(tool, 2)
    evicted = tool.status()["evicted"]
    branches = [tool.run(trunk, cell.format(80 + i))[0] for i in range(14)]
    deadline = time.monotonic() + 20
    while tool.status()["evicted"] == evicted and time.monotonic() < deadline:
        time.sleep(0.1)
    assert tool.status()["evicted"] > evicted
    assert trunk not in branches, "no cell was stopped for what its siblings hold"
    assert (
        stopped(tool, trunk, large)
        == f"[stopped: all branches of this session together {said}. {KEPT}"
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
    """Eviction looks, decides and acts; forks, drops and rebuilds come in between."""
    made = PythonTool("local", Limits(live_states=3, spares=2))
    wrong = []

    def work(number):
        states = [begin(made, number, f"x = [{number}]; open('f', 'w').write('{number}')")]
        for cell in range(12):
            parent = states[(cell * 7 + number) % len(states)]
            length = len(parent[1])
            state, result = made.run(parent, f"x.append({cell}); len(x), open('f').read()")
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
        assert made.status()["evicted"] > 10
        assert made.mismatches == 0
    finally:
        made.close()
