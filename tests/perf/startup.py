"""What it takes to start: `import envs`, a help text, the first step of an episode.

    python -m tests.perf.startup

Every row is a fresh interpreter, all in turn, round after round; the median counts. The targets:
`import envs` within 0.3 s of `import gymnasium`, `python -m learners.appo --help` within 3 s, and
neither imports what it does not need (test_envs.py and test_commands.py assert that).
A script, not a test: times are printed and never asserted.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

HEAVY = ("torch", "transformers", "datasets", "sympy", "tyro")
ROWS = {
    "python": "pass",
    "import gymnasium": "import gymnasium",
    "import envs": "import envs",
    "first reset and step": (
        "import envs, gymnasium as gym\n"
        "env = gym.make('appo/SyntheticQA-v0')\n"
        "env.reset(seed=0)\n"
        "env.step('<answer> 1 </answer>')"
    ),
    "learners.appo --help": (
        "import sys, io, contextlib\n"
        "from learners.runs.training import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
        "    main('learners.appo', ['--help'])"
    ),
    "import learners.runs.run": "import learners.runs.run",
}
"""What each fresh interpreter runs."""


def children() -> float:
    """CPU seconds of the interpreters that have ended."""
    used = os.times()
    return used.children_user + used.children_system


CLOCKS = {"wall": time.perf_counter, "cpu": children}


def seconds(code: str, clock: Callable[[], float]) -> float:
    """Of an interpreter from its start to its end."""
    begun = clock()
    subprocess.run([sys.executable, "-c", code], check=True)
    return clock() - begun


def imported(code: str) -> list[str]:
    """Heavy packages that it imports."""
    asked = f"{code}\nimport sys\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True)
    return run.stdout.splitlines()[-1].split()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument(
        "--clock", choices=CLOCKS, default="wall", help="cpu: where others use the machine too"
    )
    arguments = parser.parse_args()
    taken: dict[str, list[float]] = {name: [] for name in ROWS}
    for number in range(arguments.rounds + 1):
        for name, code in ROWS.items():
            one = seconds(code, CLOCKS[arguments.clock])
            if number:  # the first round fills the disk's cache
                taken[name].append(one)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    print(f"{'':24}{arguments.clock + ' s':>9}{'spread':>15}{'beyond gymnasium':>18}  imports")
    for name, median in medians.items():
        spread = f"{min(taken[name]):.2f}-{max(taken[name]):.2f}"
        beyond = median - medians["import gymnasium"]
        names = ", ".join(imported(ROWS[name])) or "nothing heavy"
        print(f"{name:24}{median:9.2f}{spread:>15}{beyond:18.2f}  {names}")


if __name__ == "__main__":
    main()
