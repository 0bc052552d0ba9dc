"""What a score on an id depends on, pinned: it may change only together with the id's version."""

import hashlib

import pytest

from benchmarks import BENCHMARKS
from envs import ToolEnv
from envs.reward import BOTH_TOOLS_BONUS, REWARDS
from envs.tags import LONGEST_OBSERVATION
from envs.tool_env import LONGEST_ACTION

DIGESTS = {
    "appo/AIME24-v0": "5b4cd2b60f79",
    "appo/AIME25-v0": "99c0b895e357",
    "appo/MATH500-v0": "7aacc8d51172",
    "appo/GSM8K-v0": "6797c670278a",
    "appo/MATH-v0": "a618934927ea",
    "appo/WebWalker-v0": "c88e56a0df74",
    "appo/HotpotQA-v0": "2e99dac0e1bf",
    "appo/2WikiMultihopQA-v0": "b10394c2456b",
    "appo/MuSiQue-v0": "545df629e06b",
    "appo/Bamboogle-v0": "b10394c2456b",
    "appo/GAIA-v0": "a4079ba652c1",
    "appo/HLE-v0": "21200f044667",
    "appo/xbench-DeepSearch-v0": "826895f76cdb",
    "appo/SyntheticQA-v0": "1ebda0f44138",
}
"""First 12 hex digits of the sha256 of `spec`."""


def spec(name):
    """Reward names, prompt, scorers and limits of an id, as text."""
    env = ToolEnv(name.removeprefix("appo/").removesuffix("-v0"))
    benchmark = env.benchmark
    return "\n".join(
        [
            f"rewards {REWARDS}, both tools {BOTH_TOOLS_BONUS}",
            f"scorers {named(benchmark.score)}, {named(benchmark.training_score)}",
            f"tools {[tool.name for tool in env.tools]}",
            f"results of a search {benchmark.search_results}",
            f"tool calls {env.max_tool_calls}, tokens {benchmark.max_response_tokens}",
            f"characters of a turn {LONGEST_ACTION}, of an observation {LONGEST_OBSERVATION}",
            f"rows {benchmark.revision}, training rows from {benchmark.train_source}",
            f"instructions {env.instructions}",
        ]
    )


def named(scorer):
    return scorer.__qualname__


def digest(name):
    return hashlib.sha256(spec(name).encode()).hexdigest()[:12]


def test_every_id_is_pinned():
    assert set(DIGESTS) == {f"appo/{name}-v0" for name in BENCHMARKS}


@pytest.mark.parametrize("name", DIGESTS)
def test_what_a_score_depends_on_changes_only_with_the_version_of_its_id(name):
    assert digest(name) == DIGESTS[name], (
        f"the reward, prompt, scorer or limits of {name} changed. If that moves a score, raise the "
        f"id's version and say why in the changelog; then write {digest(name)} here. Now it is:\n"
        f"{spec(name)}"
    )
