"""Gymnasium environments: importing this package registers `appo/<Benchmark>-v0` for each one."""

import gymnasium as gym

from benchmarks import BENCHMARKS
from envs import spellings
from envs.checks import check_fork
from envs.state import EnvState, StepInfo
from envs.tags import Answer, ToolCall, parse
from envs.tool_env import ToolEnv

__all__ = ["Answer", "EnvState", "StepInfo", "ToolCall", "ToolEnv", "check_fork", "parse"]

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
