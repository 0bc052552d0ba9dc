"""The Python tool as an environment uses it: values in, values out."""

import gc
import json
import os
import pickle
import signal
import threading

import pytest

from tests import needs
from tools.python import FAULTS, KILLS, Killed, PythonTool, RetryBudget, SandboxDied, StateLost
from tools.sandbox.protocol import Limits
from tools.tool import ToolContext, ToolUnavailable

SMALL = Limits(cpu=0.5, wall=5.0, memory=256 << 20, processes=8, disk=8 << 20, files=200)


@pytest.fixture(scope="module")
def tool():
    tool = PythonTool("local", SMALL)
    yield tool
    tool.close()


@pytest.fixture(scope="module")
def patient():
    """A tool with time for libraries that take long to import the first time."""
    tool = PythonTool("local", Limits(cpu=60.0))
    yield tool
    tool.close()


def play(tool, *cells, seed=0):
    """Run cells one after the other; return the last state and the last result."""
    state, result = tool.initial_state(ToolContext(seed=seed)), None
    for cell in cells:
        state, result = tool.run(state, cell)
    return state, result


def text(tool, *cells, seed=0):
    return play(tool, *cells, seed=seed)[1].text


def test_opens_nothing_before_the_first_run():
    tool = PythonTool("local")
    state = tool.initial_state(ToolContext(seed=3))
    assert tool._sandbox is None
    assert state == ((3, ()), ())
    tool.close()


def test_an_unknown_sandbox_is_refused_with_what_was_expected():
    with pytest.raises(ValueError, match="expected auto, local or docker"):
        PythonTool("chroot")


def test_names_definitions_and_imports_live_on(tool):
    assert text(tool, "import math\ndef f(x):\n    return math.sqrt(x)\n", "f(16)") == "4.0\n"


def test_the_last_expression_is_echoed_and_a_semicolon_silences_it(tool):
    assert text(tool, "x = 2\nx * 21") == "42\n"
    assert text(tool, "7;") == ""
    assert text(tool, "None") == ""
    assert text(tool, "5", "_ + 1") == "6\n"


def test_open_generators_and_objects_persist(tool):
    assert text(tool, "g = (i * i for i in range(9)); next(g), next(g)", "next(g)") == "4\n"


def test_a_traceback_shows_the_lines_of_the_cell_and_none_of_ours(tool):
    traceback = text(tool, "def half(n):\n    return 1 / n", "half(0)")
    assert 'File "<cell 2>", line 1' in traceback
    assert 'File "<cell 1>", line 2' in traceback
    assert "return 1 / n" in traceback
    assert "ZeroDivisionError: division by zero" in traceback
    assert "<repl." not in traceback


def test_a_syntax_error_is_the_models_mistake(tool):
    _state, result = play(tool, "x = = 1")
    assert not result.ok
    assert "SyntaxError" in result.text


def test_what_ran_before_an_exception_is_kept(tool):
    assert text(tool, "a = 1\nb = 2 / 0", "a") == "1\n"


def test_output_and_errors_interleave_as_written(tool):
    cell = (
        "import sys\nfor i in range(3):\n    print('out', i)\n    print('err', i, file=sys.stderr)"
    )
    assert text(tool, cell) == "out 0\nerr 0\nout 1\nerr 1\nout 2\nerr 2\n"


def test_output_is_cut_in_the_middle_and_the_rest_counted(tool):
    output = text(tool, "print('a' * 50_000 + 'z')")
    assert output.startswith("aaa")
    assert output.endswith("z\n")
    assert "[... 42002 bytes of output left out ...]" in output


def test_input_and_exit_do_something_sensible(tool):
    assert "EOFError" in text(tool, "input('name? ')")
    assert text(tool, "x = 5\nimport sys; sys.exit(0)", "x") == "5\n"
    assert not play(tool, "import sys; sys.exit(2)")[1].ok


def test_sixteen_branches_from_one_state_do_not_see_each_other(tool):
    trunk, _ = play(tool, "values = [0]")
    leaves = [tool.run(trunk, f"values.append({i}); values")[1].text for i in range(16)]
    assert leaves == [f"[0, {i}]\n" for i in range(16)]
    assert tool.run(trunk, "values")[1].text == "[0]\n"


def test_branches_of_branches(tool):
    state, _ = play(tool, "x = 1")
    child, _ = tool.run(state, "x = 2")
    grandchild, _ = tool.run(child, "x = 3")
    assert [tool.run(s, "x")[1].text for s in (state, child, grandchild)] == ["1\n", "2\n", "3\n"]


def test_a_chain_longer_than_the_kernel_has_layers(tool):
    state, result = play(tool, "n = 0", *["n += 1"] * 30, "n")
    assert result.text == "30\n"
    assert len(state[1]) == 32


def test_files_belong_to_a_state(tool):
    trunk, _ = play(tool, "open('f', 'w').write('trunk')")
    left, _ = tool.run(trunk, "open('f', 'w').write('left')")
    right, result = tool.run(trunk, "open('f').read()")
    assert result.text == "'trunk'\n"
    assert tool.run(left, "open('f').read()")[1].text == "'left'\n"
    assert tool.run(right, "import os; os.listdir()")[1].text == "['f']\n"


def test_an_open_file_keeps_its_own_position_in_each_branch(tool):
    trunk, _ = play(tool, "f = open('t', 'w+'); f.write('0123456789'); f.seek(0); f.read(2)")
    assert tool.run(trunk, "f.read(3)")[1].text == "'234'\n"
    assert tool.run(trunk, "f.read(3)")[1].text == "'234'\n"


def test_a_cell_past_its_time_leaves_the_state_before_it(tool):
    state, _ = play(tool, "x = 1")
    after, result = tool.run(state, "x = 2\nwhile True: pass")
    assert after == state
    assert not result.ok
    assert "[stopped: the cell" in result.text
    assert tool.run(state, "x")[1].text == "1\n"


def test_a_sleeping_cell_meets_the_clock(tool):
    state, result = play(tool, "print('begun', flush=True)\nimport time; time.sleep(60)")
    assert state[1] == ()
    assert result.text.startswith("begun\n[stopped: the cell took longer than 5 s")


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("import os; os._exit(3)", "exit code 3"),
        ("import ctypes; ctypes.string_at(0)", "signal 11"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "signal 9"),
    ],
)
def test_a_cell_that_dies_leaves_the_state_before_it(tool, cell, reason):
    state, _ = play(tool, "x = 1")
    after, result = tool.run(state, cell)
    assert after == state
    assert reason in result.text
    assert tool.run(after, "x")[1].text == "1\n"


def test_random_numbers_are_decided_by_the_seed_and_go_on_across_cells(tool):
    cells = ("import random; a = random.random()", "a, random.random()")
    assert text(tool, *cells, seed=5) == text(tool, *cells, seed=5)
    assert text(tool, *cells, seed=5) != text(tool, *cells, seed=6)
    import random

    generator = random.Random(5)
    assert text(tool, *cells, seed=5) == f"({generator.random()}, {generator.random()})\n"


@pytest.mark.parametrize(
    ("module", "cell", "expected"),
    [
        ("numpy", "import numpy\nint(numpy.arange(10).sum())", "45\n"),
        ("sympy", "import sympy\nx = sympy.Symbol('x')\nsympy.solve(x**2 - 4)", "[-2, 2]\n"),
        ("scipy", "import scipy.optimize as o\nround(o.brentq(lambda x: x - 2, 0, 9), 6)", "2.0\n"),
        ("pandas", "import pandas\nint(pandas.DataFrame({'a': [1, 2]}).a.sum())", "3\n"),
        (
            "matplotlib",
            "import matplotlib.pyplot as p, os\np.plot([1, 2]); p.savefig('a.png')\n"
            "os.path.getsize('a.png') > 0",
            "True\n",
        ),
    ],
)
def test_libraries_work_when_the_sandbox_has_them(patient, module, cell, expected):
    needs.packages(module, remedy=f"pip install {module}", where="where it was installed by hand")
    assert text(patient, cell).endswith(expected)


def test_numpy_is_seeded_too_and_has_one_thread(tool):
    cells = ("import numpy", "numpy.random.rand()")
    assert text(tool, *cells, seed=5) == text(tool, *cells, seed=5)
    assert text(tool, "import os; os.environ['OPENBLAS_NUM_THREADS']") == "'1'\n"


def test_a_thread_that_goes_on_is_mentioned_and_stops(tool):
    cell = (
        "import threading, time\nn = 0\ndef work():\n    global n\n    while True:\n"
        "        n += 1\n        time.sleep(0.001)\n"
        "threading.Thread(target=work, daemon=True).start()"
    )
    state, result = play(tool, cell)
    assert "do not go on in the next cell" in result.text
    state, first = tool.run(state, "a = n; time.sleep(0.05); n - a")
    assert first.text == "0\n"


def test_a_subprocess_that_goes_on_is_ended_and_mentioned(tool):
    cell = "import subprocess; p = subprocess.Popen(['sleep', '600'])"
    assert "1 process(es) that the cell left running were ended" in text(tool, cell)


def test_the_state_is_a_value_that_survives_pickle_and_json(tool):
    state, _ = play(tool, "x = [1]", "x.append(2); x")
    assert pickle.loads(pickle.dumps(state)) == state

    def tuples(value):
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    assert tuples(json.loads(json.dumps(state))) == state
    assert hash(state) == hash(tuples(json.loads(json.dumps(state))))


def test_a_state_is_rebuilt_in_a_sandbox_that_never_saw_it(tool):
    state, _ = play(tool, "import random; x = [random.random()]", "x.append(random.random())")
    expected = tool.run(state, "x, random.random()")[1].text
    other = PythonTool("local", SMALL)
    try:
        assert other.run(state, "x, random.random()")[1].text == expected
        assert other.replays == 1
    finally:
        other.close()


def test_a_replay_that_answers_otherwise_is_noticed():
    tool = PythonTool("local", SMALL)
    try:
        state, _ = play(tool, "import time; time.time_ns()")
        tool._sandbox.drop(list(tool._live.values()))
        with pytest.raises(ToolUnavailable, match="cell 1 of 1 gave another output"):
            tool.run(state, "1")
        assert tool.mismatches == 1
    finally:
        tool.close()


def test_a_killed_hub_is_replaced_and_the_episode_goes_on():
    tool = PythonTool("local", SMALL)
    try:
        state, _ = play(tool, "x = 41")
        os.kill(tool._sandbox._transport._process.pid, signal.SIGKILL)
        assert tool.run(state, "x + 1")[1].text == "42\n"
    finally:
        tool.close()


def test_a_forgotten_tool_leaves_nothing_running():
    tool = PythonTool("local", SMALL)
    play(tool, "1")
    hub = tool._sandbox._transport._process
    del tool
    gc.collect()
    assert hub.poll() is not None


def test_attachments_lie_in_the_work_folder(tool, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n1,2\n")
    state = tool.initial_state(ToolContext(seed=0, attachments=(str(path),)))
    assert tool.run(state, "open('table.csv').read()")[1].text == "'a,b\\n1,2\\n'\n"


def test_many_threads_share_one_tool(tool):
    answers = {}

    def work(number):
        state, _ = play(tool, f"x = {number}")
        answers[number] = tool.run(state, "x")[1].text

    threads = [threading.Thread(target=work, args=(i,)) for i in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {i: f"{i}\n" for i in range(12)}


def test_a_forked_process_opens_its_own_sandbox(tool):
    state, _ = play(tool, "x = 1")
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, tool.run(state, "x + 1")[1].text.encode())
            tool.close()
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert os.read(reader, 100) == b"2\n"
    os.close(reader)
    os.close(writer)
    assert tool.run(state, "x")[1].text == "1\n"


def test_nul_and_surrogates_in_code_are_the_models_mistake(tool):
    assert not play(tool, "x = '\0'")[1].ok
    assert text(tool, "'\\ud800'") == "'\\ud800'\n"
    assert text(tool, "print('\\ud800 é 中')") == "\\ud800 é 中\n"
    assert not play(tool, "x = '\ud800'")[1].ok


def test_an_endless_cell_text_is_not_sent(tool):
    state, result = play(tool, "x = '" + "a" * 200_000 + "'")
    assert state[1] == ()
    assert "100000 are allowed" in result.text


def test_each_failure_spends_its_own_part_of_a_calls_retries():
    """Seven attempts: four kills, two faults, one eviction; a lost sandbox blames no state."""
    budget = RetryBudget()
    for outcome in [Killed()] * 4 + [StateLost("fault"), StateLost("broken"), StateLost("gone")]:
        budget = budget.after(outcome)
    assert budget == RetryBudget(attempts=7, kills=KILLS - 4, faults=FAULTS - 2)
    assert not budget.sandbox_failed
    assert budget.after(StateLost("lost")) == budget._replace(attempts=8, sandbox_failed=True)
    assert budget.after(SandboxDied("closed")) == budget._replace(attempts=8, sandbox_failed=True)
    tested = budget.after(SandboxDied("starts nothing", is_tested=True))
    assert tested == budget._replace(attempts=8, faults=0, sandbox_failed=True)
