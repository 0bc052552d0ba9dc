"""What the README shows is what happens: its snippets run, its commands exist."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
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
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands(word):
    """The python commands of the bash block that holds a word, in order."""
    (block,) = [b for b in blocks("bash") if word in b]
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


@pytest.mark.timeout(900)
def test_the_commands_of_the_first_screen_run_in_their_order(tmp_path):
    for command in commands("runs/start"):
        module = shlex.split(command)[2]
        extra = shlex.split(SMALL[module])
        done = run([sys.executable, *shlex.split(command)[1:], *extra], tmp_path)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
    assert (tmp_path / "runs/appo/reward.png").exists()
    assert (tmp_path / "runs/grpo/metrics.jsonl").exists()


@pytest.mark.full
@pytest.mark.timeout(1200)
@pytest.mark.skipif(not DATA.exists(), reason="set APPO_DATA to a folder of benchmark rows")
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
