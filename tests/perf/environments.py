"""Episodes per second with one Python call each: ours, four other gyms, and a bare exec.

    python -m tests.perf.environments --peers FOLDER

The others disagree about versions, so each has an environment of its own in FOLDER:

    python -m venv FOLDER/NAME && FOLDER/NAME/bin/pip install PACKAGES

    NAME         PACKAGES
    gem-llm      gem-llm
    skyrl-gym    skyrl-gym
    openenv      openenv-core smolagents
    fhaviary     fhaviary

What is not there is left out, with the reason. An episode is a reset, one call that prints a
number, and an answer, and the number is looked for in what came back. All take turns in processes
of their own, which start and warm up unmeasured; a median is of all episodes of all rounds. They do
not do the same, as the last column says: only ours isolates what it runs, by the kernel, and keeps
its state. Seconds are of the wall clock, since most of the work is done by other processes. The
target: ahead of each of the four, every episode in a session of its own. A script, not a test: no
time is asserted.
"""

import argparse
import asyncio
import io
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[2]
SECONDS = 300  # of one process; then it is given up
Episode = Callable[[str], str]  # code to run -> what the policy would read


@contextmanager
def bare() -> Iterator[Episode]:
    def episode(code: str) -> str:
        said = io.StringIO()
        with redirect_stdout(said):
            exec(compile(code, "cell", "exec"), {})
        return said.getvalue()

    yield episode


@contextmanager
def ours() -> Iterator[Episode]:
    from envs import ToolEnv

    env = ToolEnv("SyntheticQA", tools=("python",))

    def episode(code: str) -> str:
        env.reset(seed=0)
        said, *_ = env.step(f"<think> so </think><python>{code}</python>")
        env.step("<think> so </think><answer>\\boxed{1}</answer>")
        return said

    yield episode
    env.close()


@contextmanager
def gem() -> Iterator[Episode]:
    from gem.core import Env
    from gem.tools.python_code_tool import PythonCodeTool
    from gem.tools.tool_env_wrapper import ToolEnvWrapper

    class Question(Env):
        def reset(self, seed=None):
            super().reset(seed=seed)
            return "question", {}

        def step(self, action):
            return "", 1.0, True, False, {}

    env = ToolEnvWrapper(Question(), [PythonCodeTool()])

    def episode(code: str) -> str:
        env.reset(seed=0)
        said, *_ = env.step(f"<python>{code}</python>")
        env.step("\\boxed{1}")
        return said

    yield episode


@contextmanager
def skyrl() -> Iterator[Episode]:
    from skyrl_gym.envs.searchcode.env import SearchCodeEnv

    def episode(code: str) -> str:
        env = SearchCodeEnv(extras={"reward_spec": {"ground_truth": "1"}, "max_turns": 3})
        env.init([{"role": "user", "content": "question"}])
        said = env.step(f"<tool><python>{code}</python></tool>")["observations"][0]["content"]
        env.step("<solution>1</solution>")
        env.close()
        return said

    yield episode


@contextmanager
def openenv(*, kept: bool) -> Iterator[Episode]:
    """The server is a process of its own; a connection to it is a session.

    Each episode has one of its own, as episodes at the same time need; or all take turns in one.
    """
    from openenv.core.generic_client import GenericEnvClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    here = [sys.executable, "-m", "tests.perf.environments", "--serve", str(port)]
    with subprocess.Popen(here, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            _listening(port, server)

            def session() -> AbstractContextManager[Any]:
                return GenericEnvClient(base_url=f"http://127.0.0.1:{port}").sync()

            def played(env: Any, code: str) -> str:
                env.reset()
                said = env.step({"code": code}).observation["stdout"]
                env.step({"code": ""})
                return said

            def alone(code: str) -> str:
                with session() as env:
                    return played(env, code)

            with session() if kept else nullcontext() as env:
                yield partial(played, env) if kept else alone
        finally:
            server.terminate()


def _listening(port: int, server: subprocess.Popen[bytes]) -> None:
    while server.poll() is None:
        with socket.socket() as tried:
            if tried.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise RuntimeError("its server ended")


def serve(port: int) -> None:
    """Over openenv's own Python tool; no code is the answer."""
    import uvicorn
    from openenv.core.env_server.http_server import create_fastapi_app
    from openenv.core.env_server.interfaces import Environment
    from openenv.core.env_server.types import Action, Observation, State
    from openenv.core.tools.local_python_executor import PyExecutor

    class Code(Action):
        code: str

    class Output(Observation):
        stdout: str = ""

    class PythonEnvironment(Environment):
        def reset(self, seed=None, episode_id=None, **_):
            self.python = PyExecutor()
            return Output()

        def step(self, action, timeout_s=None, **_):
            if not action.code:
                return Output(done=True, reward=1.0)
            return Output(stdout=self.python.run(action.code).stdout)

        @property
        def state(self):
            return State()

    app = create_fastapi_app(PythonEnvironment, Code, Output)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error")


@contextmanager
def aviary() -> Iterator[Episode]:
    from aviary.core import Environment, Message, Tool, ToolCall, ToolRequestMessage

    def python(code: str) -> str:
        """Run Python.

        Args:
            code: to run.
        """
        return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout

    class PythonEnvironment(Environment):
        async def reset(self):
            self.tools = [Tool.from_function(python)]
            return [Message(content="question")], self.tools

        async def step(self, action):
            if isinstance(action, ToolRequestMessage):
                return await self.exec_tool_calls(action), 0.0, False, False
            return [], 1.0, True, False

    async def played(code: str) -> str:
        env = PythonEnvironment()
        await env.reset()
        call = ToolCall.from_name("python", code=code)
        said, *_ = await env.step(ToolRequestMessage(tool_calls=[call]))
        await env.step(Message(content="1"))
        return str(said[0].content)

    with asyncio.Runner() as runner:
        yield lambda code: runner.run(played(code))


PLAYERS = {
    "bare exec": (bare, "exec in this process; nothing is kept from anything: the limit"),
    "ours": (ours, "a fork of a warm interpreter, kept as a state, in a sandbox of the kernel"),
    "gem-llm": (gem, "python -c and a temporary folder a call; no sandbox by default"),
    "skyrl-gym": (skyrl, "python -c a call, no sandbox"),
    "openenv": (
        partial(openenv, kept=False),
        "an interpreter of syntax trees (smolagents), in a server's process; a session an episode",
    ),
    "openenv kept": (partial(openenv, kept=True), "the same; one session for all"),
    "fhaviary": (aviary, "brings no Python tool; here one that runs python -c, no sandbox"),
}


def play(name: str, episodes: int) -> None:
    """Print the seconds of every episode."""
    seconds = []
    with PLAYERS[name][0]() as episode:
        for number in range(episodes + 3):  # the first three warm up
            begun = time.perf_counter()
            said = episode(f"print({number} * 7 + 1000)")
            seconds.append(time.perf_counter() - begun)
            assert str(number * 7 + 1000) in said, said
    print(json.dumps(seconds[3:]))


def measured(name: str, python: Path, episodes: int) -> list[float] | str:
    """Seconds of every episode, or why there are none."""
    if not python.exists():
        return f"not installed: there is no {python}"
    paths = os.pathsep.join([str(python.parent), os.environ["PATH"]])  # for `python -c`
    surroundings = os.environ | {"PYTHONPATH": str(REPOSITORY), "PATH": paths}
    command = [str(python), "-m", "tests.perf.environments", "--play", name]
    with tempfile.TemporaryDirectory() as folder:
        try:
            ran = subprocess.run(
                [*command, "--episodes", str(episodes)],
                cwd=folder,
                env=surroundings,
                capture_output=True,
                text=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"not done within {SECONDS} s"
    if ran.returncode:
        return re.sub(r"\s+", " ", ran.stderr.strip().splitlines()[-1])[:200]
    return json.loads(ran.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, default=Path("peers"), help="see above")
    parser.add_argument("--episodes", type=int, default=30, help="of each in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=list(PLAYERS), metavar="NAME")
    parser.add_argument("--play", choices=PLAYERS, help=argparse.SUPPRESS)
    parser.add_argument("--serve", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve is not None:
        return serve(given.serve)
    if given.play is not None:
        return play(given.play, given.episodes)
    seconds, reasons = {name: [] for name in given.only}, {}
    for _ in range(given.rounds):
        for name in given.only:
            own = name in ("bare exec", "ours")
            folder = given.peers.absolute() / name.split()[0]
            python = Path(sys.executable) if own else folder / "bin/python"
            found = measured(name, python, given.episodes)
            if isinstance(found, str):
                reasons[name] = found
            else:
                seconds[name] += found
    report(seconds, reasons)


def report(seconds: dict[str, list[float]], reasons: dict[str, str]) -> None:
    own = statistics.median(seconds["ours"]) if seconds.get("ours") else None
    print(f"{'':14}{'ms':>8}{'quarter to three':>18}{'a second':>10}{'x ours':>8}  how")
    for name, found in seconds.items():
        if len(found) < 2:
            print(f"{name:14}left out: {reasons.get(name, 'too few episodes')}")
            continue
        low, middle, high = (1e3 * each for each in statistics.quantiles(found, n=4))
        over = "" if own is None else f"{middle / own / 1e3:.2f}"
        print(
            f"{name:14}{middle:8.2f}{f'{low:.2f}-{high:.2f}':>18}{1e3 / middle:10.0f}{over:>8}"
            f"  {PLAYERS[name][1]}"
        )


if __name__ == "__main__":
    main()
