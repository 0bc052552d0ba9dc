"""Rollouts: sample a turn, step the environment, repeat; and the files they are stored in.

rollout       plays unfinished trajectories, in lockstep or overlapped
tool_threads  a thread pool whose calls can time out; retries of a step
encoding      text to token ids and back
storage       rollout files in Parquet
"""

from __future__ import annotations

from learners.rollouts.encoding import encode
from learners.rollouts.rollout import RESERVED_TOKENS, Hook, Rollouts
from learners.rollouts.storage import (
    list_iterations,
    read_rows,
    to_floats,
    write_rollouts,
    write_rows,
)
from learners.rollouts.tool_threads import ATTEMPTS, UNAVAILABLE, step_with_retries

__all__ = [
    "ATTEMPTS",
    "RESERVED_TOKENS",
    "UNAVAILABLE",
    "Hook",
    "Rollouts",
    "encode",
    "list_iterations",
    "read_rows",
    "step_with_retries",
    "to_floats",
    "write_rollouts",
    "write_rows",
]
