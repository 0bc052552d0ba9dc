"""Which tokens are uncertain and which decide: places relative to tool calls, and words.

Read from rollout files. A token is high where it is among the top share of its own rollout, by the
exact entropy or by APPO's branching score, as branches are placed: within a rollout, not across.
Only rollouts with a defined score count, so that both rankings are of the same tokens.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from learners.errors import UsageError
from learners.intervals import percentile_interval, resample
from learners.rollouts import list_iterations, read_rows

Place = Literal["after a result", "before the action", "in a call", "in an answer"]


PLACES: tuple[Place, ...] = get_args(Place)


NEAR = 5
"""Tokens after a tool's result that count as right after it."""


RESAMPLES = 1000


OPENING = re.compile(r"<(?P<name>[a-z_]+)>")


WORD = re.compile(r"</?\w+>|\\?\w+|[^\w\s]")


class Token(NamedTuple):
    """A token that the policy sampled."""

    task: str
    since: int | None
    """Tokens since the last result, 0 for the first after it; None before any."""
    until: int | None
    """Tokens to the end of its turn, 0 for the last, where the turn is a call."""
    place: Place
    high_entropy: bool
    high_score: bool


class Word(NamedTuple):
    """A word of the policy's, wherever it was said."""

    text: str
    times: int
    entropy: float
    """Mean over its tokens and occurrences, nats."""
    score: float


def scored_rows(folder: Path, last: int) -> list[dict[str, Any]]:
    """Initial rollouts of the last iterations whose every score is defined.

    Raises:
        UsageError: there are none.
    """
    rows = [row for i in list_iterations(folder)[-last:] for row in read_rows(folder, i)]
    kept = [
        row
        for row in rows
        if row["parent"] is None
        and row["branch_scores"] is not None
        and row["entropies"] is not None
        and row["text"] is not None
    ]
    if not kept:
        raise UsageError(
            f"{folder} has no rollout with a branching score and its text: give the folder of a "
            "run of learners.appo with mini-batches after the first, on an open environment"
        )
    return kept


def tokens_of(rows: Iterable[dict[str, Any]], share: float) -> Iterator[Token]:
    """The sampled tokens of rollouts, each with its place.

    Args:
        rows: of rollout files.
        share: of a rollout's tokens that are called high.
    """
    for row in rows:
        own = [i for i, mine in enumerate(row["mask"]) if mine]
        count = max(1, round(share * len(own)))
        entropic, decisive = (
            set(sorted(own, key=lambda i: (-row[name][i], i))[:count])
            for name in ("entropies", "branch_scores")
        )
        result: int | None = None
        for turn in row["turns"]:
            opened = _opening(row, turn["begin"], turn["action_end"])
            for i in range(turn["begin"], turn["action_end"]):
                since = None if result is None else i - result
                until = turn["action_end"] - 1 - i if turn["tool"] is not None else None
                place = _place(since, i, opened)
                yield Token(row["task"], since, until, place, i in entropic, i in decisive)
            result = turn["end"] if turn["end"] > turn["action_end"] else result


def _opening(row: dict[str, Any], begin: int, end: int) -> tuple[int, str] | None:
    """First token of a turn's last opening tag, and its name."""
    ends = row["token_ends"]
    start = ends[begin - 1] if begin else 0
    said = row["text"][start : ends[end - 1]] if end > begin else ""
    tags = [m for m in OPENING.finditer(said) if f"</{m['name']}>" in said]
    if not tags:
        return None
    place = start + tags[-1].start()
    first = next(i for i in range(begin, end) if ends[i] > place)
    return first, tags[-1]["name"]


def _place(since: int | None, token: int, opened: tuple[int, str] | None) -> Place:
    if opened is not None and token >= opened[0]:
        return "in an answer" if opened[1] == "answer" else "in a call"
    return "after a result" if since is not None and since < NEAR else "before the action"


def lifts(tokens: Sequence[Token]) -> dict[Place, dict[str, Any]]:
    """By place: its share of all tokens, and how much likelier high tokens lie there.

    Returns:
        tokens (share of all), `entropy` and `score`: the share among high tokens over that, with
        its 95 % interval from resampled tasks.
    """
    by_task: defaultdict[str, Counter[tuple[Place, str]]] = defaultdict(Counter)
    for token in tokens:
        found = by_task[token.task]
        found[token.place, "tokens"] += 1
        found[token.place, "entropy"] += token.high_entropy
        found[token.place, "score"] += token.high_score
    counts = list(by_task.values())
    sums = [_summed(sample) for sample in resample(counts, RESAMPLES)]
    plain = _summed(counts)
    table: dict[Place, dict[str, Any]] = {}
    for place in PLACES:
        if not plain[place, "tokens"]:
            continue
        table[place] = {"tokens": _share(plain, place, "tokens")}
        for kind in ("entropy", "score"):
            resampled = [_lift(one, place, kind) for one in sums]
            table[place][kind] = percentile_interval(_lift(plain, place, kind), resampled)
    return table


def _summed(counts: Iterable[Counter[tuple[Place, str]]]) -> Counter[tuple[Place, str]]:
    total: Counter[tuple[Place, str]] = Counter()
    for one in counts:
        total.update(one)
    return total


def _share(counts: Counter[tuple[Place, str]], place: Place, kind: str) -> float:
    whole = sum(counts[other, kind] for other in PLACES)
    return counts[place, kind] / whole if whole else 0.0


def _lift(counts: Counter[tuple[Place, str]], place: Place, kind: str) -> float:
    base = _share(counts, place, "tokens")
    return _share(counts, place, kind) / base if base else 1.0


def by_distance(
    tokens: Sequence[Token], side: Literal["since", "until"], most: int
) -> dict[str, list[float]]:
    """How much likelier than any token a token at a distance is to be high.

    Args:
        tokens: of rollouts.
        side: since, after a result; until, before the end of a call.
        most: distances from 0 up to this are told.

    Returns:
        `entropy` and `score`, each by distance; NaN where no token lies.
    """
    found = {}
    for kind in ("entropy", "score"):
        high = [getattr(token, f"high_{kind}") for token in tokens]
        base = sum(high) / max(1, len(high))
        at: defaultdict[int, list[bool]] = defaultdict(list)
        for token, is_high in zip(tokens, high, strict=True):
            distance = getattr(token, side)
            if distance is not None and distance <= most:
                at[distance].append(is_high)
        found[kind] = [
            sum(at[d]) / len(at[d]) / base if at[d] and base else float("nan")
            for d in range(most + 1)
        ]
    return found


def words_of(rows: Iterable[dict[str, Any]], least: int) -> list[Word]:
    """Words that the policy said at least so often, with what their tokens were like."""
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
        if len(values) >= least
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
