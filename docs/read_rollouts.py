"""A walk through a run's rollout files, cell by cell; `python docs/read_rollouts.py RUN` runs it.

Editors that know `# %%` show it as a notebook. It needs pandas alone, nothing of this repository.
"""
# ruff: noqa: T201

# %% Two lines read a run: a row per trajectory, trees are rows of one (iteration, tree).
import sys

import pandas as pd

frame = pd.read_parquet(f"{sys.argv[1] if len(sys.argv) > 1 else 'runs/appo'}/rollouts")
print(frame.groupby("iteration")["reward"].agg(["count", "mean"]))

# %% Roots and branches. A branch shares `position` tokens with the trajectory whose path it names.
frame["name"] = frame["path"].map(tuple)
roots, branches = frame[frame["parent"].isna()], frame[frame["parent"].notna()].copy()
branches["source"] = branches["parent"].map(tuple)
key = ["iteration", "tree"]
pairs = branches.merge(
    frame[[*key, "name", "reward", "text", "token_ends", "entropies"]],
    left_on=[*key, "source"],
    right_on=[*key, "name"],
    suffixes=("", "_of_parent"),
)
pairs["gain"] = pairs["reward"] - pairs["reward_of_parent"]

# %% Where did the agent decide, and was it rewarded for it?


def word(text: str, ends: list[int], position: int) -> str:
    """The text of one token."""
    return text[ends[position - 1] if position else 0 : ends[position]]


shown = pairs.dropna(subset=["text"])  # a restricted task has none
for _, row in shown.sort_values("gain", key=abs, ascending=False).head(5).iterrows():
    position = int(row["position"])  # pandas keeps a column with gaps as floats
    theirs = word(row["text_of_parent"], row["token_ends_of_parent"], position)
    ours = word(row["text"], row["token_ends"], position)
    print(f"{row['task']}: {theirs!r} -> {ours!r} at token {position}: reward {row['gain']:+.2f}")
print(f"{(pairs['gain'] != 0).mean():.1%} of {len(pairs)} branches changed the reward")

# %% A row per sampled token, in long form; shared tokens are counted once, in their parent.
columns = ["mask", "sampler_entropies", "sampler_logprobs"]
long = frame[[*key, "name", "position", *columns]].explode(columns)
long["at"] = long.groupby([*key, "name"]).cumcount()
own = long[long["mask"].astype(bool) & (long["at"] >= long["position"].fillna(0))]
print(
    f"{len(own):,} tokens sampled, mean entropy {own['sampler_entropies'].astype(float).mean():.3f}"
)

# %% Tool calls, with what they took; what a branch inherited was paid for by its parent.
shared = frame["position"].fillna(0)
made = [
    turn
    for turns, position in zip(frame["turns"], shared, strict=True)
    for turn in turns
    if turn["tool"] is not None and turn["end"] > position
]
if made:
    print(pd.DataFrame(made).groupby("tool")["seconds"].agg(["count", "median", "max"]))
