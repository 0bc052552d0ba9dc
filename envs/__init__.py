"""Gymnasium environments: importing this package registers `appo/<Benchmark>-v0` for each one.

tool_env   ToolEnv, one environment for every benchmark
state      EnvState, everything an episode depends on, as a value
tags       the tag language of turns
reward     from an ended episode to its reward
toolbox    makes the tools of an environment
tasks      loads the tasks of an environment
checks     check_fork, the executable contract of snapshot and fork
spaces     the space of text
spellings  hints for misspelled ids
"""

from __future__ import annotations

import gymnasium as gym

from benchmarks import BENCHMARKS
from envs import spellings
from envs.checks import check_fork
from envs.reward import RewardName, compute_reward, final_answer
from envs.state import Call, EnvState, StepInfo, Stop
from envs.tags import Answer, ToolCall, observation, parse, render, stop_tags
from envs.tool_env import Outcome, ToolEnv
from envs.toolbox import CacheMode, RunTool, run_tool

__all__ = [
    "Answer",
    "CacheMode",
    "Call",
    "EnvState",
    "Outcome",
    "RewardName",
    "RunTool",
    "StepInfo",
    "Stop",
    "ToolCall",
    "ToolEnv",
    "check_fork",
    "compute_reward",
    "final_answer",
    "observation",
    "parse",
    "render",
    "run_tool",
    "stop_tags",
]

for _name in BENCHMARKS:
    if f"appo/{_name}-v0" not in gym.registry:
        gym.register(
            id=f"appo/{_name}-v0",
            entry_point="envs.tool_env:ToolEnv",
            kwargs={"benchmark": _name},
            # Their wrappers hold episode state of their own, which a restore would not restore.
            order_enforce=False,
            disable_env_checker=True,
        )
spellings.register()
