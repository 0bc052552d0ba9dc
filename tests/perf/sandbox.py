"""Measures what a cell costs: python -m tests.perf.sandbox [--rounds N] [--quick]

Every round measures each row once, in a new random order, so that other load on the machine affects
all rows alike. The ratios are what counts. The limit is the time that os.fork() takes to return in
a process of the same size (numpy and sympy imported and used, no huge pages). A row that could not
be measured says why.
"""

import argparse
import contextlib
import dataclasses
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from tools.sandbox.docker_engine import open_docker
from tools.sandbox.local import open_local
from tools.sandbox.protocol import DockerOptions, Limits, Sandbox, SandboxLost
from tools.tool import ToolUnavailable

LIMITS = Limits()
PAUSE = 0.1
"""Seconds between two measurements: much less than a model takes to write a cell."""
IMPORTS = "import numpy, sympy"
HISTORY = ["import numpy, sympy", "x = sympy.Symbol('x')", "y = sympy.solve(x**2 - 2, x)", "z = 1"]

# Prints seconds: the return of os.fork(), the same with the child's exit and the wait for it.
FORKER = """
import gc, os, sys, time
import numpy, sympy
x = sympy.Symbol('x'); sympy.solve(x**2 - 2, x); sympy.integrate(sympy.sin(x) * x, x)
gc.collect(); gc.freeze()
for line in sys.stdin:
    start = time.perf_counter()
    pid = os.fork()
    if not pid: os._exit(0)
    returned = time.perf_counter()
    os.waitpid(pid, 0)
    print(returned - start, time.perf_counter() - start, flush=True)
"""


class Forker:
    """A process of the size of a state's, which forks on demand."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORKER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={"PATH": os.environ["PATH"], "OPENBLAS_NUM_THREADS": "1"},
        )

    def fork(self, column: int) -> float:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline().split()[column])

    def close(self) -> None:
        self.process.communicate()


def measure(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def measure_together(actions: Sequence[Callable[[], object]]) -> float:
    """Return the seconds until the last action has returned, each on a thread of its own."""
    threads = [threading.Thread(target=action) for action in actions]

    def run_all() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    return measure(run_all)


class Operations:
    """A sandbox with one live state, and the operations measured on it."""

    def __init__(self, sandbox: Sandbox) -> None:
        self.sandbox = sandbox
        session = sandbox.open(0, []).state
        assert session is not None
        self.session = session
        state = sandbox.run(session, HISTORY).state
        assert state is not None
        self.state = state

    def run(self) -> float:
        start = time.perf_counter()
        reply = self.sandbox.run(self.state, ["x = 1"])
        seconds = time.perf_counter() - start
        assert reply.state is not None
        self.sandbox.drop([reply.state])
        return seconds

    def sixteen(self) -> float:
        """Run sixteen children of one state at once, until the last has answered."""
        states: list[int] = []

        def one() -> None:
            reply = self.sandbox.run(self.state, ["x = 1"])
            assert reply.state is not None
            states.append(reply.state)

        seconds = measure_together([one] * 16)
        self.sandbox.drop(states)
        return seconds

    def first(self) -> float:
        """Run an episode's first cell, which needs no state before it."""
        start = time.perf_counter()
        reply = self.sandbox.open(0, [], ["x = 1"])
        seconds = time.perf_counter() - start
        assert reply.state is not None
        self.sandbox.drop([reply.state])
        return seconds

    def replay(self) -> float:
        start = time.perf_counter()
        reply = self.sandbox.run(self.session, [*HISTORY, "x = 1"])
        seconds = time.perf_counter() - start
        assert reply.state is not None
        self.sandbox.drop([reply.state])
        return seconds

    def throughput(self, sessions: int, cells: int) -> float:
        """Return cells per second over open sessions, each on a thread of its own."""
        states = [self.sandbox.open(seed, []).state for seed in range(sessions)]

        def play(state: int | None) -> None:
            assert state is not None
            for _cell in range(cells):
                following = self.sandbox.run(state, ["x = 1"]).state
                assert following is not None
                self.sandbox.drop([following])

        seconds = measure_together([partial(play, state) for state in states])
        self.sandbox.drop([state for state in states if state is not None])
        return sessions * cells / seconds


def fresh(code: str) -> float:
    return measure(lambda: subprocess.run([sys.executable, "-c", code], check=True))


def docker_rows(image: str) -> dict[str, Callable[[], float]]:
    """Return rows for a new process in a container and for a new container."""
    run = ["docker", "run", "--rm", "--network", "none", image, "python3", "-c"]
    name = f"appo-perf-{os.getpid()}"
    subprocess.run(
        [
            "docker",
            "run",
            "-d",
            "--rm",
            "--network",
            "none",
            "--name",
            name,
            image,
            "sleep",
            "3600",
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    execute = ["docker", "exec", name, "python3", "-c"]
    code = IMPORTS + "; x = 1"
    return {
        "docker exec python3, same imports": lambda: measure(
            lambda: subprocess.run([*execute, code], check=True)
        ),
        "docker run python3, same imports": lambda: measure(
            lambda: subprocess.run([*run, code], check=True)
        ),
    }


@contextlib.contextmanager
def jupyter_rows() -> Iterator[dict[str, Callable[[], float]]]:
    """Yield rows for a kernel per episode: its start with imports, and a cell on a live one."""
    from jupyter_client.manager import KernelManager

    def begin() -> tuple[KernelManager, object]:
        manager = KernelManager()
        manager.start_kernel()
        client = manager.client()
        client.start_channels()
        client.wait_for_ready(timeout=60)
        client.execute_interactive(IMPORTS + "; x = 1", timeout=60)
        return manager, client

    def start() -> float:
        start = time.perf_counter()
        manager, client = begin()
        seconds = time.perf_counter() - start
        client.stop_channels()
        manager.shutdown_kernel(now=True)
        return seconds

    manager, client = begin()
    try:
        yield {
            "Jupyter kernel: start, imports, x = 1": start,
            "Jupyter kernel: x = 1 on a live one (cannot fork)": lambda: measure(
                lambda: client.execute_interactive("x = 1", timeout=60)
            ),
        }
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


@dataclasses.dataclass
class Table:
    """Rows and their times; a slow row is measured in fewer rounds."""

    rows: dict[str, Callable[[], float]] = dataclasses.field(default_factory=dict)
    slow: dict[str, Callable[[], float]] = dataclasses.field(default_factory=dict)
    missing: list[str] = dataclasses.field(default_factory=list)
    took: dict[str, list[float]] = dataclasses.field(default_factory=dict)

    def measure(self, rounds: int) -> None:
        order = random.Random(0)
        for number in range(rounds):
            names = [*self.rows, *(self.slow if number % 8 == 0 else ())]
            order.shuffle(names)
            for name in names:
                action = self.rows.get(name) or self.slow[name]
                self.took.setdefault(name, []).append(action())
                # A model thinks between two cells, while dropped states end and a spare is forked.
                time.sleep(PAUSE)

    def show(self, limit: str) -> str:
        base = statistics.median(self.took[limit])
        lines = [
            f"| {'':58} | median ms | 10-90 % | x limit |",
            "|---|---:|---:|---:|",
        ]
        for name in [*self.rows, *self.slow]:
            values = sorted(self.took[name])
            low, high = values[len(values) // 10], values[-1 - len(values) // 10]
            middle = statistics.median(values)
            lines.append(
                f"| {name:58} | {middle * 1e3:.2f} | {low * 1e3:.2f}-{high * 1e3:.2f}"
                f" | {middle / base:.2f} |"
            )
        return "\n".join(lines + [f"not measured: {line}" for line in self.missing])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=80)
    parser.add_argument("--quick", action="store_true", help="only forks and sandboxes")
    parser.add_argument("--image", default=DockerOptions().image)
    arguments = parser.parse_args()
    table = Table()
    limit = "limit: os.fork() returns, same size, no huge pages"
    with contextlib.ExitStack() as stack:
        forker = Forker()
        stack.callback(forker.close)
        table.rows[limit] = lambda: forker.fork(0)
        table.rows["os.fork(), child exits, waited for"] = lambda: forker.fork(1)
        operations = {}
        openers = {
            "local": lambda: open_local(LIMITS),
            "docker": lambda: open_docker(LIMITS, DockerOptions(image=arguments.image)),
        }
        none = dataclasses.replace(LIMITS, spares=0)
        late = {
            "local": lambda: open_local(none),
            "docker": lambda: open_docker(none, DockerOptions(image=arguments.image)),
        }
        for name, opener in openers.items():
            try:
                sandbox = opener()
            except (ToolUnavailable, SandboxLost) as error:
                table.missing.append(f"{name}: {error}")
                continue
            stack.callback(sandbox.close)
            one = operations[name] = Operations(sandbox)
            table.rows[f"{name}: x = 1 on a live state"] = one.run
            table.rows[f"{name}: sixteen branches of a state"] = one.sixteen
            table.rows[f"{name}: the first cell of an episode"] = one.first
            table.rows[f"{name}: replay five cells instead"] = one.replay
            plain = late[name]()
            stack.callback(plain.close)
            table.rows[f"{name}: x = 1, nothing forked in advance"] = Operations(plain).run
        if not arguments.quick:
            table.slow["fresh python -c, same imports (the reference)"] = lambda: fresh(IMPORTS)
            add_others(table, stack, arguments.image, "docker" in operations)
        table.measure(arguments.rounds)
        print(table.show(limit))
        for name, one in operations.items():
            rates = {count: one.throughput(count, 320 // count) for count in (1, 2, 16, 64)}
            shown = ", ".join(f"{count} sessions {rate:.0f}" for count, rate in rates.items())
            print(f"{name}: cells per second with {shown} ({os.cpu_count()} cores)")


def add_others(table: Table, stack: contextlib.ExitStack, image: str, docker: bool) -> None:
    if docker:
        table.slow.update(docker_rows(image))
        name = f"appo-perf-{os.getpid()}"
        command = ["docker", "rm", "-f", name]
        stack.callback(subprocess.run, command, stdout=subprocess.DEVNULL, check=False)
    else:
        table.missing.append("docker exec, docker run: no engine")
    try:
        table.slow.update(stack.enter_context(jupyter_rows()))
    except ImportError as error:
        table.missing.append(f"Jupyter: {error}; pip install jupyter_client ipykernel")


if __name__ == "__main__":
    main()
