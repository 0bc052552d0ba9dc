"""The files of a task: at hand for Python in every state, and read-only."""

import json

import pytest

from envs import ToolEnv
from tests import needs
from tests.sandboxes import KINDS
from tools.python import PythonTool
from tools.tool import ToolContext, ToolUnavailable


@pytest.fixture(scope="module", params=KINDS)
def python(request):
    made = PythonTool(request.param)
    try:
        made.run(made.initial_state(ToolContext()), "1")
    except ToolUnavailable as error:
        needs.lacking(f"the {request.param} sandbox", str(error), "in CI")
    yield made
    made.close()


def test_attachments_are_read_only_in_every_state(python, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("a,b\n")
    state = python.initial_state(ToolContext(seed=0, attachments=(str(path),)))
    for turn in range(3):
        for cell in (
            "open('table.csv', 'a')",
            "import os; os.truncate('table.csv', 0)",
            "import os; os.chmod('table.csv', 0o666); open('table.csv', 'w')",
        ):
            assert "PermissionError" in python.run(state, cell)[1].text
        cell = f"open('own.txt', 'w').write('{turn}'); open('table.csv').read()"
        state, result = python.run(state, cell)
        assert result.text == "'a,b\\n'\n"
    assert path.read_text() == "a,b\n"


def test_a_gaia_task_reads_its_attachment(python, tmp_path):
    row = {"task_id": "t-1", "Question": "What is the sum of b?", "Final answer": "5", "Level": 1}
    row |= {"file_name": "t.csv", "file_path": "2023/validation/t.csv"}
    folder = tmp_path / "benchmarks/gaia/2023/validation"
    folder.mkdir(parents=True)
    (folder / "t.csv").write_text("a,b\n1,2\n2,3\n", "utf-8")
    (tmp_path / "benchmarks/gaia/test.jsonl").write_text(json.dumps(row) + "\n", "utf-8")
    env = ToolEnv("GAIA", data_dir=tmp_path, tools=(python,))
    question, _ = env.reset(options={"task": "t-1"})
    assert question.endswith("The attached file is in Python's folder: t.csv")
    code = "sum(int(line.split(',')[1]) for line in open('t.csv').readlines()[1:])"
    assert "5" in env.step(f"<think> read </think> <python> {code} </python>")[0]
    info = env.step("<think> so </think> <answer> \\boxed{5} </answer>")[4]
    assert info["reward_terms"]["score"] == 1
