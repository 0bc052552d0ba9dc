"""Scores of an answer by text alone: boxed content, numbers, exact match, token F1.

Symbolic mathematics is in `benchmarks.equality`, a model's verdicts in `benchmarks.judge`.
"""

import re
import string
from collections import Counter

from benchmarks.benchmark import Score, Task
from benchmarks.numerals import the_number

LONGEST_ANSWER = 20_000
"""Characters; of a longer answer only the end is read."""

_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=[^\s\w]|\d|\s)")
_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ONE_WORD = frozenset({"yes", "no", "noanswer"})


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced \boxed{...}; None where there is none.

    Escaped braces do not count, \fbox and \boxed 5 are read too. Linear in the text.
    """
    text = text[-LONGEST_ANSWER:]
    ends: dict[int, int] = {}
    opened: list[int] = []
    for match in _BRACE.finditer(text):
        if match.group() == "{":
            opened.append(match.start())
        elif match.group() == "}" and opened:
            ends[opened.pop()] = match.start()
    for match in reversed(list(_BOX.finditer(text))):
        start = match.end()
        if text[start : start + 1] != "{":
            bare = re.match(r"[^\s$\\{}]+", text[start:])
            if bare is not None:
                return bare.group().rstrip(".,;")
        elif start in ends:
            return text[start + 1 : ends[start]].strip()
    return None


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def token_f1(prediction: str, gold: str) -> float:
    """HotpotQA's F1 over words; 0 where either side is yes, no or noanswer and they differ."""
    left, right = normalize_answer(prediction), normalize_answer(gold)
    if left != right and (left in _ONE_WORD or right in _ONE_WORD):
        return 0.0
    ours, theirs = left.split(), right.split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def score_number(answer: str, task: Task) -> Score:
    """1 where the boxed content, or an unboxed answer, holds one number and it is the reference."""
    boxed = last_boxed(answer)
    extracted = answer[-LONGEST_ANSWER:].rpartition("####")[2].strip() if boxed is None else boxed
    ours = the_number(extracted)
    right = ours is not None and any(ours == the_number(gold) for gold in task.answers)
    return Score(float(right), "number", extracted[:200])
