"""ARPO's training mixtures: which of their rows a benchmark trains on, and what those rows mean."""

import re
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from benchmarks.benchmark import Task
from benchmarks.catalog import DEEP_SEARCH_TRAIN, REASONING_TRAIN
from benchmarks.loading import LeftOut, Training
from benchmarks.sources import DataUnavailable, Row, field, question_id

_ESCAPES = {
    "\x08": ("b", ("oxed", "egin", "inom", "eta", "ar", "mod", "ig")),
    "\x0b": ("v", ("ec", "ert", "arphi", "arepsilon")),
    "\x0c": ("f", ("rac", "orall")),
}
"""Control characters that an unescaped \\b, \\v or \\f left behind, and the commands they began."""
_CONTROL = re.compile("[\x08\x0b\x0c]")


def repaired(text: str) -> str:
    r"""Control characters turned back into the LaTeX they were; others of their kind dropped."""

    def mend(match: re.Match[str]) -> str:
        letter, commands = _ESCAPES[match.group()]
        return f"\\{letter}" if text.startswith(commands, match.end()) else ""

    return _CONTROL.sub(mend, text)


def _task(row: Row, counts: Counter[str], ability: Literal["math", "qa"] | None) -> Task:
    if ability is not None and row.get("ability") != ability:
        raise LeftOut(f"not {ability}")
    extra, reward = field(row, "extra_info"), field(row, "reward_model")
    if not isinstance(extra, Mapping) or not isinstance(reward, Mapping):
        raise DataUnavailable("extra_info and reward_model of a training row are no objects")
    # The stored system prompt is damaged and not ours; only the question is read.
    raw, gold = str(field(extra, "question")), str(field(reward, "ground_truth"))
    question = repaired(raw).strip()
    if question != raw.strip():
        counts["control characters repaired"] += 1
    answer_type: Literal["latex", "span"] = "latex" if ability == "math" else "span"
    source = (("source", str(row.get("data_source") or "")),)
    answers = (repaired(gold).strip(),)
    return Task(question_id(question), question, answers, answer_type, metadata=source)


def math_row(row: Row, counts: Counter[str]) -> Task:
    """A mathematics row of train_10k."""
    return _task(row, counts, "math")


def qa_row(row: Row, counts: Counter[str]) -> Task:
    """A question-answering row of train_10k."""
    return _task(row, counts, "qa")


def deep_search_row(row: Row, counts: Counter[str]) -> Task:
    """A row of hard_search_1k."""
    return _task(row, counts, None)


MATH_ROWS = Training("train_10k", REASONING_TRAIN, math_row, validation=500)
QA_ROWS = Training("train_10k", REASONING_TRAIN, qa_row, validation=500)
DEEP_SEARCH_ROWS = Training("hard_search_1k", DEEP_SEARCH_TRAIN, deep_search_row, validation=100)
