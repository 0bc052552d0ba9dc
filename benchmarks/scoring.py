"""The scorers: the text between the answer tags and its task -> a Score, and names others use.

Whatever the model wrote, a scorer answers: it raises only where the machine fails
(`GraderUnavailable`, `JudgeUnavailable`), and it takes under a second of processor time.
"""

from __future__ import annotations

import re
import string
import unicodedata
from fractions import Fraction

from benchmarks.arpo import ArpoReward, arpo_reward
from benchmarks.benchmark import Score, Task
from benchmarks.equality import math_equal, spelling
from benchmarks.text import (
    LONGEST_ANSWER,
    best_f1,
    exact_match,
    last_boxed,
    normalize_answer,
    the_number,
    token_f1,
)

__all__ = [
    "ArpoReward",
    "arpo_reward",
    "extract",
    "last_boxed",
    "normalize_answer",
    "score_choice",
    "score_em",
    "score_exact",
    "score_f1",
    "score_gaia",
    "score_math",
    "token_f1",
]

LONGEST_SPAN = 2_000
"""Characters of a text answer that are compared; longer ones are no spans."""

_WRAPPED = re.compile(r"^\\(?:text(?:bf|it|rm)?|math(?:bf|rm)|mbox)\s*\{([^{}]*)\}\.?$")


_SENTENCE = re.compile(r"(?:[^\W_]|[\s.,:;'\"()?%-])*")
"""Words and plain numbers; a sign or a command of mathematics would change what a number means."""


_MARK = re.compile(r"<\|[^|<>]*\|>")
"""A chat template's, where an answer ran into its end."""


_TOUCHING = re.compile(r"\d[A-Za-z]|[A-Za-z]\d|\d\(|\)\d")


_CHANGES = re.compile(
    r"\b(?:not|never|except|or|than|at least|at most|about|between|minus|negative|plus|times|over"
    r"|divided|squared|cubed|root|sqrt|factorial|pi|infinity|half|dozen|hundred|thousand"
    r"|[mbtr]+illion)s?\b",
    re.I,
)
"""Words that change what a number beside them means, or that hedge."""


_LETTER = re.compile(
    r"^(?:(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?:?\s+)*"
    r"[(\[]?([A-Z])(?:[)\].:]+(?!\s*[(\[]?[A-Z][)\].:])(?:\s.*)?|\s*)$",
    re.I | re.S,
)


_OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s+(.+?)\s*$", re.M)


GRADING_THREADS = 8
"""Answers graded at a time; each may wait for a grading process or a judge."""


def extract(answer: str) -> str:
    r"""The part that is compared: the last \boxed{...}, else what follows ####, else everything.

    An environment has opened the box before, so that both may be wrapped in \text{...}.
    """
    boxed = last_boxed(answer)
    found = answer[-LONGEST_ANSWER:].rpartition("####")[2].strip() if boxed is None else boxed
    wrapped = _WRAPPED.match(found)
    return wrapped.group(1).strip() if wrapped else found


def _score(right: bool | float, method: str, extracted: str) -> Score:
    shown = extracted[:200].encode("utf-8", "replace").decode()
    return Score(float(right), method, shown)


def score_math(answer: str, task: Task) -> Score:
    """Mathematical equality with any reference.

    An unboxed sentence counts if it holds a single number and nothing that would change it: listing
    candidates does not pay. What stood alone in a box is no sentence if it is mathematics.
    """
    extracted = extract(answer)
    method = "empty"
    for gold in task.answers:
        equal, method = math_equal(extracted, gold)
        if equal:
            return _score(True, method, extracted)
    if last_boxed(answer) is None and len(extracted) <= LONGEST_SPAN:
        number = _stated_number(extracted)
        right = number is not None and any(_plain(gold) == number for gold in task.answers)
        return _score(right, "only number" if right else method, extracted)
    return _score(False, method, extracted)


def _stated_number(text: str) -> Fraction | None:
    """The only number of a sentence that states one."""
    sentence = spelling(_MARK.sub("", text))
    plain = _SENTENCE.fullmatch(sentence) and not _TOUCHING.search(sentence)
    return the_number(sentence) if plain and not _CHANGES.search(sentence) else None


def _plain(gold: str) -> object:
    """The number a reference is, if it is nothing else."""
    return the_number(gold) if re.fullmatch(r"[-+$\d.,\s]+", spelling(gold)) else None


def score_em(answer: str, task: Task) -> Score:
    """Exact match after SQuAD's normalisation, with any accepted answer."""
    extracted = extract(answer)[:LONGEST_SPAN]
    return _score(any(exact_match(extracted, gold) for gold in task.answers), "em", extracted)


def score_f1(answer: str, task: Task) -> Score:
    """Best token F1 over the accepted answers."""
    extracted = extract(answer)[:LONGEST_SPAN]
    return _score(best_f1(extracted, task.answers, task.language), "f1", extracted)


def score_gaia(answer: str, task: Task) -> Score:
    """GAIA's own quasi exact match."""
    extracted = extract(answer)[:LONGEST_SPAN]
    right = any(gaia_correct(extracted, gold) for gold in task.answers) and bool(extracted)
    return _score(right, "gaia", extracted)


def score_exact(answer: str, task: Task) -> Score:
    """1 for the reference's own words; for anything else a judge is needed."""
    extracted = extract(answer)[:LONGEST_SPAN]
    if not extracted:
        return _score(False, "empty", extracted)
    if any(_folded(extracted) == _folded(gold) for gold in task.answers):
        return _score(True, "exact", extracted)
    return _score(False, "not judged", extracted)._replace(judged=False)


def score_choice(answer: str, task: Task) -> Score:
    """The option's letter, or the option's own words; for anything else a judge is needed."""
    if task.answer_type != "choice":
        return score_exact(answer, task)
    extracted = extract(answer)[:LONGEST_SPAN]
    if not extracted:
        return _score(False, "empty", extracted)
    letter = _LETTER.match(extracted)
    if letter is not None:
        chosen = {letter.group(1).upper()}
    else:
        options = _OPTION.findall(task.question)
        chosen = {name for name, words in options if _folded(words) == _folded(extracted)}
    if len(chosen) == 1:
        golds = {match.group(1).upper() for match in map(_LETTER.match, task.answers) if match}
        return _score(bool(chosen & golds), "choice", extracted)
    return _score(False, "not judged", extracted)._replace(judged=False)


def _folded(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(" .\u3002")


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


_BLANK = re.compile(r"\s")


_SEPARATOR = re.compile(r"[,;]")


def gaia_correct(answer: str, gold: str) -> bool:
    """True where the official scorer accepts the answer."""
    if _is_number(gold):
        return _number(answer) == float(gold)
    if _SEPARATOR.search(gold) is None:
        return _squeezed(answer).translate(_NO_PUNCTUATION) == _squeezed(gold).translate(
            _NO_PUNCTUATION
        )
    ours, theirs = _SEPARATOR.split(answer), _SEPARATOR.split(gold)
    return len(ours) == len(theirs) and all(
        _number(left) == float(right) if _is_number(right) else _squeezed(left) == _squeezed(right)
        for left, right in zip(ours, theirs, strict=True)
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str) -> float:
    """Infinity where there is no number, as in the original."""
    for sign in "$%,":
        text = text.replace(sign, "")
    return float(text) if _is_number(text) else float("inf")


def _squeezed(text: str) -> str:
    return _BLANK.sub("", text).lower()
