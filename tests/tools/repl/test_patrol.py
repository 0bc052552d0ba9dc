"""The hub's rounds, in a process of their own: they end every child that is no state."""

import subprocess
import sys

SWEEP = """
import os, subprocess, time
from tools.repl.jobs import Job, LiveState
from tools.repl.link import Output
from tools.repl.patrol import Patrol

class Running(LiveState):
    def __init__(self, pid):
        self.pid, self.parent, self.handle = pid, None, 1

patrol = Patrol({}, 0, "")
newborn, running = (subprocess.Popen(["sleep", "60"]) for _ in range(2))
job = Job(Output(100))
job.assign(1, [{"op": "exec"}], ())
job.advance()
patrol.sweep({}, {1: Running(running.pid)})
running.kill()
os.waitid(os.P_PID, running.pid, os.WEXITED | os.WNOWAIT)
print(patrol.explain_end(Running(newborn.pid), job), patrol.explain_end(Running(running.pid), job))
"""


def test_what_the_hub_took_for_a_stranger_is_made_again_and_no_end_of_the_cell():
    """A child announces itself after its parent was killed, and after the hub has swept it away."""
    run = subprocess.run([sys.executable, "-c", SWEEP], capture_output=True, text=True, timeout=60)
    assert run.stdout == "('gone', None) ('crash', -9)\n", run.stderr
