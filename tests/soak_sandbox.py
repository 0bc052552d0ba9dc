"""Ten minutes of everything at once: python -m tests.soak_sandbox [--minutes 10] [--cells 20000].

Sessions on threads of their own run cells, fork, go back, drop, and now and then run into a limit
or lose a process to a kill. An oracle in this process knows what every cell must print. At the end:
nothing has leaked, and a sample of the states, replayed in a fresh sandbox, says what it said
before. Exit status 1 if anything failed.
"""

import argparse
import os
import random
import signal
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from tools.python import PythonState, PythonTool
from tools.sandbox import Limits
from tools.tool import ToolContext

LIMITS = Limits(cpu=0.3, wall=60.0, memory=256 << 20, processes=16, live_states=400)
START = "import random\nx = 0\nseen = []"


@dataclass
class Known:
    """What the oracle knows of a state: its value, what was seen, and its own random generator."""

    state: PythonState
    x: int
    seen: tuple[int, ...]
    draws: int


@dataclass
class Tally:
    """What happened. Mutated by every session under the lock."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    cells: int = 0
    stopped: int = 0
    wrong: list[str] = field(default_factory=list)
    kills: int = 0
    hit: int = 0
    sample: list[tuple[int, Known]] = field(default_factory=list)


def draw(seed: int, count: int) -> int:
    """The `count`-th number that a session seeded with `seed` draws."""
    generator = random.Random(seed)
    value = 0
    for _ in range(count):
        value = generator.randrange(10**6)
    return value


class Hit(Exception):
    """The killer met a running cell; it must have left no trace."""


def run(tool: PythonTool, state: PythonState, cell: str) -> tuple[PythonState, str]:
    """Run a cell; Hit if a kill from outside ended it."""
    following, result = tool.run(state, cell)
    if "(signal 9)" in result.text:
        assert following == state, "a killed cell left a trace"
        raise Hit
    return following, result.text


def step(tool: PythonTool, seed: int, known: Known, choice: random.Random) -> Known:
    """One cell from a known state; AssertionError if it says anything but what it must."""
    kind = choice.random()
    if kind < 0.03:
        state, text = run(tool, known.state, "x = -1\nwhile True: pass")
        assert state == known.state, "a stopped cell left a trace"
        assert "[stopped: the cell" in text, text
        return known
    if kind < 0.06:
        state, text = run(tool, known.state, "x = -1\nimport os; os._exit(3)")
        assert state == known.state, "a dead cell left a trace"
        assert "[stopped: the Python process ended" in text, text
        return known
    if kind < 0.2:
        state, text = run(tool, known.state, "random.randrange(10**6)")
        expected = f"{draw(seed, known.draws + 1)}\n"
        assert text == expected, (text, expected)
        return Known(state, known.x, known.seen, known.draws + 1)
    if kind < 0.3:
        cell = f"open('f', 'w').write(str(x)); int(open('f').read()) + {seed}"
        state, text = run(tool, known.state, cell)
        assert text == f"{known.x + seed}\n", text
        return Known(state, known.x, known.seen, known.draws)
    add = choice.randrange(1000)
    state, text = run(tool, known.state, f"x += {add}\nseen.append({add})\n(x, len(seen))")
    x, seen = known.x + add, (*known.seen, add)
    assert text == f"({x}, {len(seen)})\n", text
    return Known(state, x, seen, known.draws)


def session(
    tool: PythonTool, number: int, until: float, tally: Tally, target: int, last: float
) -> None:
    """Random walks over a tree of states, a new tree every thirty cells."""
    choice = random.Random(number)

    def over() -> bool:
        now = time.monotonic()
        return now > last or (now > until and tally.cells >= target)

    while not over():
        seed = choice.randrange(10**6)
        try:
            state, _ = tool.run(tool.initial_state(ToolContext(seed=seed)), START)
            tree = [Known(state, 0, (), 0)]
            for _cell in range(30):
                known = tree[-1] if choice.random() < 0.7 else choice.choice(tree)
                following = step(tool, seed, known, choice)
                with tally.lock:
                    tally.cells += 1
                    tally.stopped += following is known
                if following is not known and len(following.state[1]) < 40:
                    tree.append(following)
                if over():
                    break
        except Hit:
            with tally.lock:
                tally.hit += 1
            continue
        except Exception as error:
            with tally.lock:
                tally.wrong.append(f"{type(error).__name__}: {error}"[:300])
            continue
        with tally.lock:
            if len(tally.sample) < 50:
                tally.sample.append((seed, choice.choice(tree)))


def disturb(tool: PythonTool, until: float, every: float, tally: Tally) -> None:
    """Kill a process of the sandbox now and then; in the first fifth of the time the hub, too."""
    choice = random.Random(99)
    hubs_until = time.monotonic() + (until - time.monotonic()) / 5
    while time.monotonic() < until:
        time.sleep(every)
        sandbox = tool._sandbox
        if sandbox is None or sandbox.name != "local":
            continue
        inside = group(sandbox.pid)
        hub = sandbox._transport._process.pid
        at_hub = choice.random() < 0.2 and time.monotonic() < hubs_until
        target = hub if at_hub else choice.choice(inside[1:] or [hub])
        try:
            os.kill(target, signal.SIGKILL)
        except ProcessLookupError:
            continue
        tally.kills += 1


def group(leader: int) -> list[int]:
    """Processes of a process group that are not dead."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[2]) == leader and fields[0] != "Z":
            found.append(int(path.parent.name))
    return sorted(found)


def resident(pid: int | str) -> float:
    """MiB of memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096 / 2**20


def measure(tool: PythonTool) -> dict[str, float]:
    """What must not grow: descriptors here and in the hub, memory of both, processes per state."""
    found = {
        "learner descriptors": len(os.listdir("/proc/self/fd")),
        "learner MiB": resident("self"),
        "threads": threading.active_count(),
    }
    sandbox = tool._opened()
    if sandbox.name == "local":
        hub = sandbox._transport._process.pid
        found["hub descriptors"] = len(os.listdir(f"/proc/{hub}/fd"))
        found["hub MiB"] = resident(hub)
        status = tool.status()
        extra = len(group(sandbox.pid)) - 1 - status["states"] - status["spares"]
        found["processes beyond the states"] = extra
    return found


def settle(tool: PythonTool) -> dict[str, float]:
    """Drop every state and measure once all is quiet."""
    with tool._lock:
        handles = list(tool._live.values())
        tool._live.clear()
    tool._opened().drop(handles)
    time.sleep(3)
    assert tool.status()["states"] == 0, "states that nobody holds"
    return measure(tool)


def replayed(tally: Tally, kind: str) -> int:
    """Replay a sample in a fresh sandbox; how many disagree."""
    tool, wrong = PythonTool(kind, LIMITS), 0
    try:
        for _seed, known in tally.sample:
            text = tool.run(known.state, "(x, len(seen))")[1].text
            wrong += text != f"({known.x}, {len(known.seen)})\n"
    finally:
        tool.close()
    return wrong


def run_sessions(
    tool: PythonTool, count: int, until: float, tally: Tally, target: int, last: float
) -> None:
    threads = [
        threading.Thread(target=session, args=(tool, number, until, tally, target, last))
        for number in range(count)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sandbox", default="local", choices=["local", "docker"])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--cells", type=int, default=20_000, help="at least so many")
    parser.add_argument("--at-most", type=float, default=30.0, help="minutes, whatever the cells")
    parser.add_argument("--sessions", type=int, default=64)
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds; 0 never")
    arguments = parser.parse_args()
    tally, tool = Tally(), PythonTool(arguments.sandbox, LIMITS)
    begun = time.monotonic()
    # Warm up first: what is loaded once is no leak.
    run_sessions(tool, arguments.sessions, begun, tally, arguments.cells // 10, begun + 300)
    before = settle(tool)
    print(f"after warming up with {tally.cells} cells:", before, flush=True)
    until, last = (begun + 60 * minutes for minutes in (arguments.minutes, arguments.at_most))
    if arguments.kill_every:
        calm = until - 60 if arguments.minutes > 2 else until - 10
        killer = threading.Thread(target=disturb, args=(tool, calm, arguments.kill_every, tally))
        killer.start()
    run_sessions(tool, arguments.sessions, until, tally, arguments.cells, last)
    seconds = time.monotonic() - begun
    after = settle(tool)
    status = dict(tool.status())
    sandbox = tool._opened()
    tool.close()
    left = group(sandbox.pid) if sandbox.name == "local" else []
    disagree = replayed(tally, arguments.sandbox)
    print(f"after {tally.cells} cells in {seconds:.0f} s on {arguments.sessions} sessions:", after)
    print(
        f"stopped by a limit or dead: {tally.stopped}; processes killed from outside: "
        f"{tally.kills}, of which running a cell: {tally.hit}"
    )
    print(f"wrong or failed: {len(tally.wrong)}", *tally.wrong[:10], sep="\n  ")
    print(f"replayed afresh: {len(tally.sample)}, of which otherwise: {disagree}")
    print(f"processes left after close: {len(left)}; counters: {status}")
    leaks = [
        name
        for name, value in after.items()
        if value > before[name] * (1.02 if "MiB" in name else 1.0) + (1 if "MiB" in name else 0)
    ]
    print("grown:", leaks or "nothing")
    return int(bool(tally.wrong or disagree or left or leaks))


if __name__ == "__main__":
    sys.exit(main())
