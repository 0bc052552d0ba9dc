"""Cells behave as at a Python prompt, over several states and their branches."""

import gc

import pytest

from tests.sandboxes import KINDS, forget_states
from tools.python import PythonTool
from tools.sandbox import opening
from tools.sandbox.opening import open_sandbox
from tools.sandbox.protocol import DockerOptions, Limits
from tools.tool import ToolContext, ToolUnavailable

LIMITS = Limits(memory=256 << 20, file_size=1 << 20, threads=60)


@pytest.fixture(scope="module", params=KINDS)
def tool(request):
    tool = PythonTool(request.param, LIMITS)
    yield tool
    tool.close()


def play(tool, *cells, seed=0):
    """Run cells one after the other; return the last state and the text of the last cell."""
    state, message = tool.initial_state(ToolContext(seed=seed)), ""
    for cell in cells:
        state, result = tool.run(state, cell)
        message = result.text
    return state, message


OPENED = [
    "import tempfile; f = tempfile.TemporaryFile('w+')",
    "import os; f = open('gone', 'w+'); os.unlink('gone')",
    "import os; f = open('gone', 'w+'); os.link('gone', 'other'); os.unlink('gone')",
    "import os; f = open('moved', 'w+'); open('new', 'w').close(); os.replace('new', 'moved')",
    "import os; f = open(os.memfd_create('memory'), 'w+')",
]


@pytest.mark.parametrize("opened", OPENED)
def test_branches_share_no_open_file_that_has_lost_its_name(tool, opened):
    trunk, _ = play(tool, opened, "f.write('trunk'); f.flush()")
    tool.run(trunk, "f.seek(0); f.write('BRANCH A'); f.flush()")
    assert tool.run(trunk, "f.tell(), f.seek(0), f.read()")[1].text == "(5, 0, 'trunk')\n"


def test_a_deleted_file_that_cannot_be_read_is_said_to_be_lost(tool):
    opened = "import os; f = open('gone', 'w'); os.unlink('gone'); f.write('x'); f.flush()"
    message = play(tool, opened, "f.write('y')")[1]
    assert message == "[1 file(s) of the work folder could not be carried over]\n1\n"


def test_temporary_files_can_be_made_in_every_cell(tool):
    cell = "import tempfile\nwith tempfile.NamedTemporaryFile('w+') as f: f.write('x')\nf.name"
    state, message = play(tool, cell, cell, cell)
    assert "/tmp" in message
    forget_states(tool)
    assert tool.run(state, "f.closed")[1].text == "True\n", "random file names are not compared"


def test_a_folder_that_was_entered_is_where_the_next_cell_stands(tool):
    cell = "import os; os.makedirs('a/b'); os.chdir('a/b'); open('c', 'w').write('here')"
    assert play(tool, cell, "open('c').read()")[1] == "'here'\n"
    gone = "import os; os.mkdir('d'); os.chdir('d'); os.rmdir('../d')"
    assert play(tool, gone, "open('e', 'w').write('top')", "os.listdir('.')")[1] == "['e']\n"


def test_a_folder_is_listed_alike_in_every_copy_and_after_a_replay(tool):
    cell = "import os\nfor name in 'bca': open(name, 'w').close()\nos.listdir()"
    state, first = play(tool, cell)
    for _copy in range(3):
        state, result = tool.run(state, "os.listdir()")
        assert result.text == first
    forget_states(tool)
    assert tool.run(state, "os.listdir()")[1].text == first


def test_a_seed_is_for_every_generator_and_the_same_in_every_sandbox(tool):
    cell = "import random, sympy; random.random(), sympy.randprime(1, 10**12)"
    messages = [play(tool, cell, seed=seed)[1] for seed in (1, 2)]
    assert messages[0] != messages[1]
    other = PythonTool(tool.sandbox_name, LIMITS)
    try:
        assert play(other, cell, seed=1)[1] == messages[0]
    finally:
        other.close()


def test_annotations_are_what_they_name(tool):
    assert play(tool, "def f(x: int): pass\nf.__annotations__")[1] == "{'x': <class 'int'>}\n"


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("7  # a note;", "7\n"),
        ("7;  # a note", ""),
        ("(7);", ""),
        ("'ä'; 'ö';", ""),
        ("'a;'", "'a;'\n"),
        ("7;\r\n8", "8\n"),
    ],
)
def test_a_semicolon_after_the_last_expression_silences_it_and_no_other(tool, cell, message):
    assert play(tool, cell)[1] == message


def test_errors_show_the_cell_alone(tool):
    syntax = play(tool, "x = = 1")[1]
    assert (
        syntax == '  File "<cell 1>", line 1\n    x = = 1\n        ^\nSyntaxError: invalid syntax\n'
    )
    from_input = play(tool, "def ask():\n    return input()", "ask()")[1]
    assert [line for line in from_input.splitlines() if line.startswith("  File")] == [
        '  File "<cell 2>", line 1, in <module>',
        '  File "<cell 1>", line 2, in ask',
    ]


def test_carets_stand_under_what_went_wrong(tool):
    message = play(tool, "1 + 1 / 0")[1].splitlines()
    assert message[2:4] == ["    1 + 1 / 0", "        ~~^~~"]


@pytest.mark.parametrize(
    ("cell", "limit"),
    [
        ("x = bytearray(1 << 30)", "[a cell may use 256 MiB of memory]"),
        ("open('f', 'wb').write(bytes(2 << 20))", "[a file may have 1 MiB]"),
        ("files = [open('f', 'w') for _ in range(500)]", "[a process may have 256 files open]"),
    ],
)
def test_an_error_for_want_of_something_says_how_much_there_is(tool, cell, limit):
    assert play(tool, cell)[1].splitlines()[-1] == limit


def test_threads_beyond_the_limit_end_the_cell_and_leave_the_state(tool):
    many = (
        "import threading, time; threading.stack_size(1 << 16)\n"
        "for _ in range(500): threading.Thread(target=time.sleep, args=(9,)).start()\n"
        "time.sleep(9)"
    )
    state, message = play(tool, "x = 1", many)
    assert message.startswith("[stopped: the cell had more than 60 threads.")
    assert tool.run(state, "x")[1].text == "1\n"


def test_a_cell_killed_from_outside_is_run_again(tool):
    """The cell kills itself, but only in its first runs: so it looks like a kill from outside."""
    sandbox, runs = tool._get_sandbox(), []
    state, _ = play(tool, "x = 1")

    class Killing:
        def __getattr__(self, name):
            return getattr(sandbox, name)

        def run(self, handle, cells):
            runs.append(cells)
            deadly = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
            return sandbox.run(handle, [deadly] if len(runs) < 5 else cells)

    tool._sandbox = Killing()
    try:
        assert tool.run(state, "x + 1")[1].text == "2\n"
        assert len(runs) >= 5
    finally:
        tool._sandbox = sandbox


def test_a_replay_that_is_stopped_says_which_cell_and_by_what(tool):
    (seed, files), _ = tool.initial_state(ToolContext())
    history = (("1", "0" * 16), ("import time; time.sleep(99)", "0" * 16), ("2", "0" * 16))
    other = PythonTool(tool.sandbox_name, Limits(wall=1.0))
    first = other.run(((seed, files), ()), "1")[0][1][0]
    try:
        with pytest.raises(ToolUnavailable, match=r"cell 2 of 3 was stopped \(wall\)"):
            other.run(((seed, files), (first, *history[1:])), "3")
    finally:
        other.close()


def test_attachments_of_one_name_are_refused_at_once(tmp_path):
    tool = PythonTool("local")
    paths = [tmp_path / "a" / "table.csv", tmp_path / "b" / "table.csv"]
    for path in paths:
        path.parent.mkdir()
        path.write_text("1")
    with pytest.raises(ValueError, match=r"one name: table.csv, table.csv"):
        tool.initial_state(ToolContext(attachments=tuple(map(str, paths))))


def test_auto_says_why_it_is_not_local_and_stays_with_what_it_took(monkeypatch, caplog):
    def refused(_limits):
        raise ToolUnavailable("no Landlock here")

    sandbox = open_sandbox("local", Limits(), DockerOptions())
    sandbox.name = "docker"
    monkeypatch.setattr(opening, "open_docker", lambda *_arguments: sandbox)
    with monkeypatch.context() as without:
        without.setattr(opening, "open_local", refused)
        tool = PythonTool("auto", sandboxes=1)
        assert tool.sandbox_name == "docker"
    assert "local: no Landlock here" in caplog.text
    assert tool._chosen == "docker"
    tool.close()
    del tool
    gc.collect()


def test_nothing_is_left_of_the_warm_up(tool):
    """The first process runs cells to warm up before it is forked for any session."""
    message = tool.run(
        tool.initial_state(ToolContext()),
        "import linecache, os, random, sys\n"
        "print(sorted(name for name in dir() if not name.startswith('__')))\n"
        "print([name for name in linecache.cache if name.startswith('<cell')])\n"
        "print(sys.exc_info(), sorted(os.listdir('.')), random.random())",
    )[1].text
    names, cells, rest = message.splitlines()
    assert names == "['linecache', 'os', 'random', 'sys']"
    assert cells == "['<cell 1>']"
    assert rest.startswith("(None, None, None) [] ")
