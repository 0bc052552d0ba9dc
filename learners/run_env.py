"""What a run's config asks for, refused before anything is opened; and its environments."""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from learners.run_config import RunConfig, UsageError
from learners.spending import Budget, RunStopped
from learners.stopping import refuse_budget

if TYPE_CHECKING:
    from envs import ToolEnv


def refuse(config: RunConfig) -> None:
    """Nothing if numbers are such that a run can be made of them.

    Raises:
        UsageError: one is not.
    """
    refuse_budget(config)
    prices = dict(config.prices)
    wrong = (
        (
            config.temperature <= 0,
            f"--temperature {config.temperature:g}: rollouts that are all the same teach nothing, "
            "and log-probabilities are not defined; give more than 0 (--eval-temperature may be 0)",
        ),
        (config.env == (), "--env names no environment"),
        (
            not 0 <= config.warmup < 1 or not 0 <= config.curriculum <= 1,
            f"--warmup {config.warmup:g} and --curriculum {config.curriculum:g} are shares of the "
            "iterations; expected 0 to 1",
        ),
        (config.kl < 0, f"--kl {config.kl:g} is below 0"),
        (config.lora_rank < 0, f"--lora-rank {config.lora_rank} is below 0; 0 trains all weights"),
        (
            config.patience is not None and (config.eval_every == 0 or config.patience < 1),
            f"--patience {config.patience} counts evaluations on validation tasks; give "
            "--eval-every, and a patience of 1 or more",
        ),
        (config.eval_temperature < 0, "--eval-temperature is below 0; 0 is greedy"),
        (
            not 0 <= config.max_unavailable <= 1,
            f"--max-unavailable is {config.max_unavailable:g}; expected a share from 0 to 1",
        ),
        (
            any(price < 0 for price in prices.values()) or len(prices) < len(config.prices),
            f"--prices {config.prices}; expected different tools, each with a price of 0 or more",
        ),
        (
            config.run_cost is not None and not prices,
            f"--run-cost {config.run_cost} needs --prices, as in --prices search 0.005",
        ),
        (
            config.judge_base is not None and config.judge_model is None,
            "--judge-base needs --judge-model, the judge's name there",
        ),
    )
    for is_wrong, told in wrong:
        if is_wrong:
            raise UsageError(told)


def environment(config: RunConfig, split: str) -> "ToolEnv":
    """The environment of a split, its tools made and none of them opened.

    Raises:
        UsageError: the arguments do not go together, or name a file that is not there.
        benchmarks.DataUnavailable: there is no corpus to search.
    """
    import gymnasium as gym

    import envs
    from learners.mixture import TaskMixture

    parts = []
    try:
        for name in env_ids(config):
            env = gym.make(name, **env_arguments(config, split)).unwrapped
            assert isinstance(env, envs.ToolEnv)
            _ = env.tools
            parts.append(env)
        # A mixture has all of a ToolEnv that learners use.
        return parts[0] if len(parts) == 1 else TaskMixture(parts)  # type: ignore[return-value]
    except (ValueError, FileNotFoundError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from error


def env_ids(config: RunConfig) -> tuple[str, ...]:
    """The environments of a run."""
    return (config.env,) if isinstance(config.env, str) else config.env


def env_arguments(config: RunConfig, split: str) -> dict[str, Any]:
    """What gym.make is given for a split."""
    return {
        "split": split,
        "data_dir": config.data_dir,
        "reward": config.reward,
        "level": config.level,
        "tools": config.tools,
        "max_tool_calls": config.max_tool_calls,
        "sandbox": config.sandbox,
        "search": config.search,
        "corpus": config.corpus,
        "cache": config.cache,
        "cache_mode": config.cache_mode,
    }


def prove_sandbox(env: "ToolEnv") -> None:
    """Open the sandbox of an environment that runs Python.

    Raises:
        tools.ToolUnavailable: none can be had; the message says what is missing.
    """
    from tools import PythonTool

    for tool in env.tools:
        if isinstance(tool, PythonTool):
            tool.status()


def budget(config: RunConfig) -> Budget:
    """What a run may spend."""
    return Budget(config.run_calls, config.run_cost, config.prices)


def stop_where_tools_fail(config: RunConfig, what: str, faults: Sequence[str], trees: int) -> None:
    """Nothing while no more trees lose their tools than the person allowed.

    Args:
        config: says the share.
        what: lost them; for the message.
        faults: of each tree that lost its tools, why.
        trees: all of them.

    Raises:
        RunStopped: too many did.
    """
    if len(faults) <= config.max_unavailable * trees:
        return
    why = "; ".join(f"{count} x {fault}" for fault, count in Counter(faults).most_common(3))
    raise RunStopped(
        f"{len(faults)} of {trees} {what} lost their tools, more than --max-unavailable "
        f"{config.max_unavailable:g} allows: {why}. Nothing of them is kept. When the tools work, "
        "run the same command: it resumes from the last checkpoint"
    )
