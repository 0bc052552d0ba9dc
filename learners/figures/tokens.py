"""Locates uncertain and consequential tokens relative to tool calls, and ranks words by them.

Tokens are read from rollout files. A token is high if it is in the top share of its own rollout, by
exact entropy or by APPO's branching score: branches, too, are chosen within a rollout. Only
rollouts with a defined score count, so that both rankings are of the same tokens.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from learners.errors import UsageError
from learners.intervals import Interval, percentile_interval, resample
from learners.rollouts import list_iterations, read_rows

Region = Literal["after a result", "before the action", "in a call", "in an answer"]
"""Part of a turn that a token is in."""

REGIONS: tuple[Region, ...] = get_args(Region)

NEAR = 5
"""Tokens after a tool's result that count as right after it."""

RESAMPLES = 1000

OPENING = re.compile(r"<(?P<name>[a-z_]+)>")

WORD = re.compile(r"</?\w+>|\\?\w+|[^\w\s]")

Counts = Counter[tuple[Region, str]]
"""Numbers of tokens by region and kind: `tokens` is all of them, `entropy` and `score` the high."""


class Token(NamedTuple):
    """A token that the policy sampled."""

    task: str
    since: int | None
    """Tokens since the last result, 0 for the first after it; None before any result."""
    until: int | None
    """Tokens to the end of its turn, 0 for the last; None if the turn is not a call."""
    region: Region
    high_entropy: bool
    high_score: bool


class Lift(NamedTuple):
    """Ratios of high tokens to all tokens in a region; above 1: high tokens prefer it."""

    tokens: float
    """The region's share of all tokens."""
    entropy: Interval
    """Its share of the tokens of high entropy, divided by `tokens`; over resampled tasks."""
    score: Interval
    """Its share of the tokens of high branching score, divided by `tokens`."""


class Word(NamedTuple):
    """A word that the policy sampled, averaged over all its occurrences."""

    text: str
    times: int
    """Number of occurrences."""
    entropy: float
    """Mean entropy of its tokens, nats."""
    score: float
    """Mean branching score of its tokens."""


def scored_rows(folder: Path, last: int) -> list[dict[str, Any]]:
    """Read the initial rollouts of the last iterations whose every token has a defined score.

    Raises:
        UsageError: there are none.
    """
    rows = [
        row
        for iteration in list_iterations(folder)[-last:]
        for row in read_rows(folder, iteration)
        if row["parent"] is None
        and row["branch_scores"] is not None
        and row["entropies"] is not None
        and row["text"] is not None
    ]
    if not rows:
        raise UsageError(
            f"{folder} has no rollout with a branching score and its text: give the folder of a "
            "run of learners.appo with mini-batches after the first, on an open environment"
        )
    return rows


def locate_tokens(rows: Iterable[dict[str, Any]], share: float) -> Iterator[Token]:
    """Yield the sampled tokens of rollouts, each with its region and distances.

    Args:
        rows: of rollout files.
        share: share of a rollout's tokens that are high.
    """
    for row in rows:
        sampled = [i for i, is_sampled in enumerate(row["mask"]) if is_sampled]
        count = max(1, round(share * len(sampled)))
        high_entropy, high_score = (
            set(sorted(sampled, key=lambda i: (-row[name][i], i))[:count])
            for name in ("entropies", "branch_scores")
        )
        result_end: int | None = None
        for turn in row["turns"]:
            action = _last_tag(row, turn["begin"], turn["action_end"])
            for i in range(turn["begin"], turn["action_end"]):
                since = None if result_end is None else i - result_end
                until = turn["action_end"] - 1 - i if turn["tool"] is not None else None
                region = _region(since, i, action)
                yield Token(row["task"], since, until, region, i in high_entropy, i in high_score)
            if turn["end"] > turn["action_end"]:
                result_end = turn["end"]


def _last_tag(row: dict[str, Any], begin: int, end: int) -> tuple[int, str] | None:
    """Return the first token of a turn's last opening tag that is closed, and the tag's name."""
    ends = row["token_ends"]
    start = ends[begin - 1] if begin else 0
    text = row["text"][start : ends[end - 1]] if end > begin else ""
    tags = [m for m in OPENING.finditer(text) if f"</{m['name']}>" in text]
    if not tags:
        return None
    position = start + tags[-1].start()
    first = next(i for i in range(begin, end) if ends[i] > position)
    return first, tags[-1]["name"]


def _region(since: int | None, token: int, action: tuple[int, str] | None) -> Region:
    if action is not None and token >= action[0]:
        return "in an answer" if action[1] == "answer" else "in a call"
    return "after a result" if since is not None and since < NEAR else "before the action"


def lifts(tokens: Sequence[Token]) -> dict[Region, Lift]:
    """Compute by region how much likelier high tokens are to be there, of regions with tokens."""
    by_task: defaultdict[str, Counts] = defaultdict(Counter)
    for token in tokens:
        counts = by_task[token.task]
        counts[token.region, "tokens"] += 1
        counts[token.region, "entropy"] += token.high_entropy
        counts[token.region, "score"] += token.high_score
    tasks = list(by_task.values())
    total, resampled = _sum(tasks), [_sum(sample) for sample in resample(tasks, RESAMPLES)]

    def interval(region: Region, kind: str) -> Interval:
        values = [_lift(counts, region, kind) for counts in resampled]
        return percentile_interval(_lift(total, region, kind), values)

    return {
        region: Lift(
            _share(total, region, "tokens"), interval(region, "entropy"), interval(region, "score")
        )
        for region in REGIONS
        if total[region, "tokens"]
    }


def _sum(counters: Iterable[Counts]) -> Counts:
    total: Counts = Counter()
    for counts in counters:
        total.update(counts)
    return total


def _share(counts: Counts, region: Region, kind: str) -> float:
    total = sum(counts[other, kind] for other in REGIONS)
    return counts[region, kind] / total if total else 0.0


def _lift(counts: Counts, region: Region, kind: str) -> float:
    base = _share(counts, region, "tokens")
    return _share(counts, region, kind) / base if base else 1.0


def by_distance(
    tokens: Sequence[Token], side: Literal["since", "until"], max_distance: int
) -> dict[str, list[float]]:
    """Compute how much likelier a token at a distance is than any token to be high.

    Args:
        tokens: of rollouts.
        side: since: after a result; until: before the end of a call.
        max_distance: in tokens.

    Returns:
        `entropy` and `score`: a value for each distance from 0 on; NaN if no token is there.
    """
    curves = {}
    for kind in ("entropy", "score"):
        high = [getattr(token, f"high_{kind}") for token in tokens]
        base = sum(high) / max(1, len(high))
        at: defaultdict[int, list[bool]] = defaultdict(list)
        for token, is_high in zip(tokens, high, strict=True):
            distance = getattr(token, side)
            if distance is not None and distance <= max_distance:
                at[distance].append(is_high)
        curves[kind] = [
            sum(at[d]) / len(at[d]) / base if at[d] and base else float("nan")
            for d in range(max_distance + 1)
        ]
    return curves


def average_words(rows: Iterable[dict[str, Any]], min_times: int) -> list[Word]:
    """Average entropy and score of the words that the policy sampled often enough.

    Args:
        rows: of rollout files.
        min_times: occurrences that a word needs.
    """
    entropies: defaultdict[str, list[float]] = defaultdict(list)
    scores: defaultdict[str, list[float]] = defaultdict(list)
    for row in rows:
        begins = [0, *row["token_ends"][:-1]]
        spans = list(zip(begins, row["token_ends"], strict=True))
        token = 0
        for match in WORD.finditer(row["text"]):
            while token < len(spans) and spans[token][1] <= match.start():
                token += 1
            inside = []
            for i in range(token, len(spans)):
                if spans[i][0] >= match.end():
                    break
                inside.append(i)
            if inside and all(row["mask"][i] for i in inside):
                entropies[match[0]].append(_mean([row["entropies"][i] for i in inside]))
                scores[match[0]].append(_mean([row["branch_scores"][i] for i in inside]))
    return [
        Word(text, len(values), _mean(values), _mean(scores[text]))
        for text, values in entropies.items()
        if len(values) >= min_times
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
