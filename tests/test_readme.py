"""What the README and its pages in docs show is what happens: snippets run, commands exist."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import needs
from tools.cache import Answer, Cache

ROOT = Path(__file__).parent.parent
PAGES = "\n".join(
    (ROOT / name).read_text(encoding="utf-8")
    for name in ("README.md", "docs/search.md", "docs/evaluating.md")
)
DATA = Path(os.environ.get("APPO_DATA", ROOT / "../shared/data")).resolve()
SMALL = {
    "learners.sft": "--demonstrations 30 --eval-tasks 2 --threads 1 --max-response-tokens 200",
    "learners.appo": "--iterations 1 --eval-tasks 2 --prompts 2 --rollouts 4 --threads 1"
    " --max-response-tokens 100",
    "learners.grpo": "--iterations 1 --eval-tasks 2 --prompts 2 --rollouts 4 --threads 1"
    " --max-response-tokens 100",
}
"""What is added to each command so that it ends soon."""


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", PAGES, re.DOTALL)


def commands(word):
    """The python commands of the first bash block that holds a word, in order."""
    block = next(b for b in blocks("bash") if word in b)
    return [line.split("#")[0].strip() for line in block.splitlines() if "python -m" in line]


def run(arguments, folder):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        arguments, cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )


@pytest.mark.parametrize("index", range(len(blocks("python"))))
def test_every_python_snippet_runs_as_it_stands(index, tmp_path):
    done = run([sys.executable, "-W", "error", "-c", blocks("python")[index]], tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_first_snippet_prints_what_its_comments_say(tmp_path):
    done = run([sys.executable, "-c", blocks("python")[0]], tmp_path)
    assert done.stdout.split() == ["<result>", "42", "</result>"] * 1 + [
        "<result>",
        "43",
        "</result>",
        "0.0" if "0.0" in done.stdout else "0",
    ], done.stdout + done.stderr


def test_the_snippet_of_searching_prints_what_its_comment_says(tmp_path):
    (snippet,) = [block for block in blocks("python") if "HotpotQA" in block]
    done = run([sys.executable, "-c", snippet], tmp_path)
    assert done.stdout.split() == snippet.splitlines()[-1].removeprefix("#").split()


@pytest.mark.timeout(900)
def test_the_commands_of_the_first_screen_run_in_their_order(tmp_path):
    for command in commands("runs/start"):
        module = shlex.split(command)[2]
        extra = shlex.split(SMALL[module])
        done = run([sys.executable, *shlex.split(command)[1:], *extra], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs/appo/reward.png").exists()
    assert (tmp_path / "runs/grpo/metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_commands_of_searching_run_in_their_order(taught, tmp_path):
    """Offline: the web is a recording that knows nothing, and the service listens elsewhere."""
    shutil.copytree(taught, tmp_path / "runs/start")
    page = {"title": "Milo", "text": "The founder of Deep Gate."}
    (tmp_path / "passages.jsonl").write_text(json.dumps(page))
    recording = Cache(tmp_path / "web.sqlite")
    recording.answer({"source": "nothing"}, lambda: Answer("[]"))
    recording.close()
    server, address = None, ""
    try:
        for command in commands("--cache-mode replay"):
            if command.endswith("&"):
                words = shlex.split(command.rstrip("&").replace("--port 8000", "--port 0"))
                server = subprocess.Popen(
                    [sys.executable, *words[1:]],
                    cwd=tmp_path,
                    env={**os.environ, "PYTHONPATH": str(ROOT)},
                    stdout=subprocess.PIPE,
                    text=True,
                )
                address = server.stdout.readline().strip().removesuffix("/retrieve")
                continue
            words = shlex.split(command.replace("http://127.0.0.1:8000", address))
            extra = SMALL.get(words[2], "").replace("--rollouts 4", "--rollouts 8")
            web = "--cache-mode frozen" if "web" in words else ""
            done = run([sys.executable, *words[1:], *shlex.split(f"{extra} {web}")], tmp_path)
            assert done.returncode == 0, f"{command}\n{done.stderr}"
    finally:
        if server is not None:
            server.terminate()
            server.communicate()
    recorded, replayed = (metrics(tmp_path / "runs" / name) for name in ("remote", "again"))
    assert recorded["ledger/tool_calls_search"] >= 1
    assert replayed.pop("ledger/free_calls_search") == replayed["ledger/tool_calls_search"]
    replayed.pop("ledger/free_calls")
    assert replayed == {n: v for n, v in recorded.items() if "free_calls" not in n}
    web = metrics(tmp_path / "runs/web")
    assert web["ledger/cost"] == 0
    assert web["ledger/free_calls_search"] >= 1


def metrics(folder):
    """Of a run of one iteration, without its times."""
    line = json.loads((folder / "metrics.jsonl").read_text())
    return {
        name: value for name, value in line.items() if not name.startswith(("seconds/", "memory/"))
    }


@pytest.mark.full
@pytest.mark.timeout(1200)
@needs.unless(DATA.exists(), *needs.ROWS)
def test_the_commands_on_gsm8k_run_with_the_real_model(tmp_path):
    for command in commands("gsm8k-start"):
        module = shlex.split(command)[2]
        given = command.replace("../shared/data", str(DATA))
        extra = shlex.split(SMALL[module].replace("30", "4").replace("100", "40"))
        done = run([sys.executable, *shlex.split(given)[1:], *extra], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"


def test_the_two_commands_to_know_are_targets_of_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", "\n".join(blocks("bash")), re.MULTILINE):
        assert f"\n{target}:" in makefile
