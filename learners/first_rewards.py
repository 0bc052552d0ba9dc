"""`reward/first` of runs whose metrics do not tell it, from their rollout files.

The mean over the prompts an iteration was given of the mean reward of the rollouts each began with.
What was begun or drawn because of what had been sampled is left out: rollouts that ARPO and AEPO
begin where others ended early are more often of prompts that are answered soon, and DAPO's further
prompts are drawn where the first taught nothing.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pyarrow.parquet as pq

from learners.rollout_files import rollout_file

FIRST = "reward/first"
READ = ["tree", "path", "reward", "unavailable"]


def with_first_rewards(folder: Path, lines: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Lines of metrics, each with `reward/first` where it or its rollout file tells.

    Args:
        folder: of the run.
        lines: of its metrics.jsonl.
    """
    if all(FIRST in line for line in lines):
        return [dict(line) for line in lines]
    config = json.loads((folder / "config.json").read_text())
    found = []
    for line in lines:
        path, told = rollout_file(folder, line["iteration"]), dict(line)
        if FIRST not in line and path.exists():
            rows = pq.read_table(path, columns=READ, partitioning=None).to_pylist()
            reward = first_reward(rows, config["prompts"], begun(config))
            told |= {} if reward is None else {FIRST: reward}
        found.append(told)
    return found


def begun(config: Mapping[str, Any]) -> int:
    """How many rollouts a run begins every prompt with.

    Args:
        config: as config.json holds it.
    """
    if config.get("pre_monitoring"):  # AEPO's probe decides how many follow
        return 1
    return int(config.get("initial_rollouts", config["rollouts"]))


def first_reward(rows: Sequence[Mapping[str, Any]], prompts: int, roots: int) -> float | None:
    """`reward/first` of an iteration; None where no tree counts.

    Args:
        rows: of its rollout file.
        prompts: that it was given; trees after those were drawn later.
        roots: that each began with.
    """
    rewards: defaultdict[int, list[float]] = defaultdict(list)
    for row in rows:
        root, *forks = row["path"]
        if row["tree"] < prompts and root < roots and not forks and row["unavailable"] is None:
            rewards[row["tree"]].append(row["reward"])
    return fmean(map(fmean, rewards.values())) if rewards else None
