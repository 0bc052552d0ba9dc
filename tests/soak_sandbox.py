"""Everything at once for ten minutes: python -m tests.soak_sandbox [--minutes 10] [--cells 20000].

It ends when both the minutes and the cells are reached; with --minutes 0 by the cells alone; with
--at-most after that time, however many cells there were, which the summary shows.
Sessions on threads of their own run cells, fork, go back, drop, and now and then run into a limit
or lose a process to a kill. An oracle in this process knows exactly what every cell must print.
At the end nothing may have leaked, and a sample of the states, replayed in a fresh sandbox, must
print the same as before. Exit status 1 if anything failed.

Memory is the private memory of a process. The learner runs with one arena of the C library's
allocator: with one for each of many threads, free memory that is kept would hide a leak.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass, field

from tests.sandbox_leaks import find_growth, format_usage, list_group, measure_at_rest
from tools.python import PythonState, PythonTool
from tools.sandbox.protocol import Limits
from tools.tool import ToolContext

LIMITS = Limits(cpu=0.3, wall=60.0, memory=256 << 20, processes=16, live_states=400)
START = "import random\nx = 0\nseen = []"


@dataclass
class Node:
    """A state and what the oracle knows about it: its variables, and how many numbers it drew."""

    state: PythonState
    x: int
    seen: tuple[int, ...]
    draws: int


@dataclass
class Tally:
    """Counts of events. Mutated by every session under the lock; `calm` holds off the kills."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    cells: int = 0
    stopped: int = 0
    wrong: list[str] = field(default_factory=list)
    kills: int = 0
    hubs: int = 0
    busy: int = 0
    trees: int = 0
    calm: threading.Lock = field(default_factory=threading.Lock)
    sample: list[Node] = field(default_factory=list)

    def finished(self, node: Node, choice: random.Random) -> None:
        """Sample fifty states of all trees, each tree with the same probability."""
        with self.lock:
            self.trees += 1
            if len(self.sample) < 50:
                self.sample.append(node)
            elif (index := choice.randrange(self.trees)) < 50:
                self.sample[index] = node


@dataclass(frozen=True)
class Span:
    """Length of the soak: minutes and cells, both to be reached, or the minutes at most."""

    tally: Tally
    minutes: float
    cells: int
    at_most: float = 0.0
    started_at: float = field(default_factory=time.monotonic)

    def share(self) -> float:
        """Return how much of it has passed, in [0, 1]."""
        time_share = (
            (time.monotonic() - self.started_at) / (self.minutes * 60) if self.minutes else 1.0
        )
        share = min(time_share, self.tally.cells / self.cells, 1.0)
        if self.at_most:
            share = max(share, (time.monotonic() - self.started_at) / (self.at_most * 60))
        return share


def draw(seed: int, count: int) -> int:
    """Return the `count`-th number that a session seeded with `seed` draws."""
    generator = random.Random(seed)
    value = 0
    for _ in range(count):
        value = generator.randrange(10**6)
    return value


def run(tool: PythonTool, state: PythonState, cell: str) -> tuple[PythonState, str]:
    """Run a cell; the tool retries one that is killed from outside."""
    following, result = tool.run(state, cell)
    return following, result.text


def step(tool: PythonTool, seed: int, node: Node, choice: random.Random) -> Node:
    """Run one cell from a node; AssertionError if it prints anything but what it must."""
    kind = choice.random()
    if kind < 0.03:
        state, text = run(tool, node.state, "x = -1\nwhile True: pass")
        assert state == node.state, "a stopped cell left a trace"
        assert text.startswith("[stopped: the cell used more than 0.3 s of CPU time."), text
        return node
    if kind < 0.06:
        state, text = run(tool, node.state, "x = -1\nimport os; os._exit(3)")
        assert state == node.state, "a dead cell left a trace"
        assert text.startswith("[stopped: the Python process ended (exit code 3)."), text
        return node
    if kind < 0.2:
        state, text = run(tool, node.state, "random.randrange(10**6)")
        expected = f"{draw(seed, node.draws + 1)}\n"
        assert text == expected, (text, expected)
        return Node(state, node.x, node.seen, node.draws + 1)
    if kind < 0.3:
        cell = f"open('f', 'w').write(str(x)); int(open('f').read()) + {seed}"
        state, text = run(tool, node.state, cell)
        assert text == f"{node.x + seed}\n", text
        return Node(state, node.x, node.seen, node.draws)
    add = choice.randrange(1000)
    state, text = run(tool, node.state, f"x += {add}\nseen.append({add})\n(x, len(seen))")
    x, seen = node.x + add, (*node.seen, add)
    assert text == f"({x}, {len(seen)})\n", text
    return Node(state, x, seen, node.draws)


def session(tool: PythonTool, number: int, span: Span, end: float) -> None:
    """Walk randomly over trees of states, thirty cells each, up to a share of the span."""
    choice, tally = random.Random(f"{number} {end}"), span.tally
    while span.share() < end:
        seed = choice.randrange(10**6)
        try:
            state, _ = run(tool, tool.initial_state(ToolContext(seed=seed)), START)
            tree = [Node(state, 0, (), 0)]
            for _cell in range(30):
                node = tree[-1] if choice.random() < 0.7 else choice.choice(tree)
                following = step(tool, seed, node, choice)
                with tally.lock:
                    tally.cells += 1
                    tally.stopped += following is node
                if following is not node and len(following.state[1]) < 40:
                    tree.append(following)
                if span.share() >= end:
                    break
        except Exception as error:
            with tally.lock:
                tally.wrong.append(f"{type(error).__name__}: {error}"[:300])
        else:
            tally.finished(choice.choice(tree), choice)


def disturb(tool: PythonTool, span: Span, every: float, done: threading.Event) -> None:
    """Kill a process of the sandbox now and then; in the first eighth also the hub."""
    choice, tally = random.Random(99), span.tally
    while not done.wait(every):
        sandbox = tool._sandbox
        if sandbox is not None and sandbox.name == "local":
            with tally.calm:
                kill_one(sandbox, choice, span)


def kill_one(sandbox, choice: random.Random, span: Span) -> None:
    """Kill at random the hub, a running process or any process of a local sandbox."""
    tally = span.tally
    if choice.random() < 0.1 and span.share() < 0.125:
        target = sandbox._transport._process.pid
        tally.hubs += 1
    else:
        busy = [] if choice.random() < 0.5 else list_group(sandbox.pid, "R")
        busy = [pid for pid in busy if pid != sandbox.pid]
        target = choice.choice(busy or list_group(sandbox.pid)[1:] or [0])
        tally.kills += target > 0
        tally.busy += target in busy
    if target:
        with contextlib.suppress(ProcessLookupError):
            os.kill(target, signal.SIGKILL)


def replay_sample(tally: Tally, kind: str) -> int:
    """Replay the sample in a fresh sandbox; return how many states disagree."""
    tool, wrong = PythonTool(kind, LIMITS), 0
    try:
        for node in tally.sample:
            text = tool.run(node.state, "(x, len(seen))")[1].text
            wrong += text != f"({node.x}, {len(node.seen)})\n"
    finally:
        tool.close()
    return wrong


def run_sessions(tool: PythonTool, count: int, span: Span, end: float) -> None:
    threads = [
        threading.Thread(target=session, args=(tool, number, span, end)) for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandbox", default="local", choices=["local", "docker"])
    parser.add_argument(
        "--minutes", type=float, default=10.0, help="at least; 0: until the cells are reached"
    )
    parser.add_argument("--cells", type=int, default=20_000, help="at least")
    parser.add_argument(
        "--at-most", type=float, default=0.0, help="minutes after which to stop; 0: never"
    )
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--kill-every", type=float, default=1.0, help="seconds; 0: never")
    parser.add_argument(
        "--growth",
        type=float,
        default=2.0,
        help="per cent by which memory may grow in the second half",
    )
    return parser.parse_args()


def main() -> int:
    arguments, tally = parse_arguments(), Tally()
    tool, done = PythonTool(arguments.sandbox, LIMITS), threading.Event()
    span = Span(tally, arguments.minutes, arguments.cells, arguments.at_most)
    every = arguments.kill_every
    killer = threading.Thread(target=disturb, args=(tool, span, every, done))
    if every:
        killer.start()
    # The first half warms up: what is loaded once or kept for reuse is no leak. Hubs are killed in
    # the first eighth only, so that the last one has time to warm up.
    run_sessions(tool, arguments.sessions, span, 1 / 2)
    with tally.calm:
        before = measure_at_rest(tool)
    print(f"after {tally.cells} cells:", format_usage(before), flush=True)
    run_sessions(tool, arguments.sessions, span, 1.0)
    done.set()
    if every:
        killer.join()
    after, seconds = measure_at_rest(tool), time.monotonic() - span.started_at
    status, sandbox = dict(tool.status()), tool._get_sandbox()
    tool.close()
    left = list_group(sandbox.pid) if sandbox.name == "local" else []
    disagree = replay_sample(tally, arguments.sandbox)
    print(f"after {tally.cells} cells in {seconds:.0f} s:", format_usage(after))
    print(
        f"{arguments.sessions} sessions, {tally.trees} trees; cells stopped by a limit or dead:"
        f" {tally.stopped}; kills from outside: {tally.kills} processes, {tally.busy} of them"
        f" running; {tally.hubs} hubs"
    )
    print(f"wrong or failed: {len(tally.wrong)}", *tally.wrong[:10], sep="\n  ")
    print(f"replayed in a fresh sandbox: {len(tally.sample)}, with another output: {disagree}")
    print(f"processes left after close: {len(left)}; counters: {status}")
    leaks = find_growth(before, after, arguments.growth)
    print("grown:", leaks or "nothing")
    return int(bool(tally.wrong or disagree or left or leaks))


if __name__ == "__main__":
    if os.environ.get("MALLOC_ARENA_MAX") != "1":
        os.environ["MALLOC_ARENA_MAX"] = "1"
        os.execv(sys.executable, [sys.executable, "-m", "tests.soak_sandbox", *sys.argv[1:]])
    sys.exit(main())
