"""The scorers: from the text between the answer tags and its task to a Score.

A scorer accepts any text and takes under a second of processor time. It raises only if the machine
fails (`GraderUnavailable`, `JudgeUnavailable`).
"""

from __future__ import annotations

import re
import string
import unicodedata
from fractions import Fraction

from benchmarks.benchmark import Score, Task
from benchmarks.equality import math_equal, normalize_expression
from benchmarks.text import (
    MAX_ANSWER_CHARACTERS,
    best_f1,
    exact_match,
    last_boxed,
    single_number,
)

GRADING_THREADS = 8
"""Answers graded concurrently; each may wait for a grading process or a judge."""
MAX_SPAN_CHARACTERS = 2_000
"""Only the beginning of a longer text answer is compared; no reference is that long."""

_WRAPPED = re.compile(r"^\\(?:text(?:bf|it|rm)?|math(?:bf|rm)|mbox)\s*\{([^{}]*)\}\.?$")
_TEMPLATE_MARK = re.compile(r"<\|[^|<>]*\|>")
"""A chat template's mark, in an answer that ran into the end of its turn."""
_SENTENCE = re.compile(r"(?:[^\W_]|[\s.,:;'\"()?%-])*")
"""Words and plain numbers; a sign or a command of mathematics would change a number's meaning."""
_ATTACHED = re.compile(r"\d[A-Za-z]|[A-Za-z]\d|\d\(|\)\d")
"""A number next to a letter or bracket, which is part of an expression."""
_HEDGES = re.compile(
    r"\b(?:not|never|except|or|than|at least|at most|about|between|minus|negative|plus|times|over"
    r"|divided|squared|cubed|root|sqrt|factorial|pi|infinity|half|dozen|hundred|thousand"
    r"|[mbtr]+illion)s?\b",
    re.I,
)
"""Words that change the meaning of a number next to them, or that hedge."""
_LETTER = re.compile(
    r"^(?:(?:the )?(?:correct |final )?(?:answer|option|choice)(?: is)?:?\s+)*"
    r"[(\[]?([A-Z])(?:[)\].:]+(?!\s*[(\[]?[A-Z][)\].:])(?:\s.*)?|\s*)$",
    re.I | re.S,
)
_OPTION = re.compile(r"^\s*\(?([A-Z])[).:]\s+(.+?)\s*$", re.M)
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_BLANK = re.compile(r"\s")
_SEPARATOR = re.compile(r"[,;]")


def extract(answer: str) -> str:
    r"""Extract the compared part: the last \boxed{...}, else the text after ####, else everything.

    An environment has already opened the box, so \text{...} is unwrapped with and without one.
    """
    boxed = last_boxed(answer)
    if boxed is None:
        boxed = answer[-MAX_ANSWER_CHARACTERS:].rpartition("####")[2].strip()
    wrapped = _WRAPPED.match(boxed)
    return wrapped.group(1).strip() if wrapped else boxed


def score_math(answer: str, task: Task) -> Score:
    """Score mathematical equality with any reference.

    An unboxed sentence counts if it has a single number and nothing that would change it, so that
    listing candidates does not pay. Mathematics that stood alone in a box is not a sentence.
    """
    extracted = extract(answer)
    method = "empty"
    for gold in task.answers:
        equal, method = math_equal(extracted, gold)
        if equal:
            return _make_score(True, method, extracted)
    if last_boxed(answer) is None and len(extracted) <= MAX_SPAN_CHARACTERS:
        number = _stated_number(extracted)
        right = number is not None and any(_plain_number(gold) == number for gold in task.answers)
        return _make_score(right, "only number" if right else method, extracted)
    return _make_score(False, method, extracted)


def score_em(answer: str, task: Task) -> Score:
    """Score an exact match, after SQuAD's normalisation, with any accepted answer."""
    extracted = extract(answer)[:MAX_SPAN_CHARACTERS]
    return _make_score(any(exact_match(extracted, gold) for gold in task.answers), "em", extracted)


def score_f1(answer: str, task: Task) -> Score:
    """Score the best token F1 over the accepted answers."""
    extracted = extract(answer)[:MAX_SPAN_CHARACTERS]
    return _make_score(best_f1(extracted, task.answers, task.language), "f1", extracted)


def score_gaia(answer: str, task: Task) -> Score:
    """Score GAIA's own quasi exact match."""
    extracted = extract(answer)[:MAX_SPAN_CHARACTERS]
    right = any(gaia_correct(extracted, gold) for gold in task.answers) and bool(extracted)
    return _make_score(right, "gaia", extracted)


def score_exact(answer: str, task: Task) -> Score:
    """Score 1 for the reference's own words; anything else needs a judge."""
    extracted = extract(answer)[:MAX_SPAN_CHARACTERS]
    if not extracted:
        return _make_score(False, "empty", extracted)
    if any(_fold(extracted) == _fold(gold) for gold in task.answers):
        return _make_score(True, "exact", extracted)
    return _make_score(False, "not judged", extracted)._replace(judged=False)


def score_choice(answer: str, task: Task) -> Score:
    """Score the option's letter or the option's own words; anything else needs a judge."""
    if task.answer_type != "choice":
        return score_exact(answer, task)
    extracted = extract(answer)[:MAX_SPAN_CHARACTERS]
    if not extracted:
        return _make_score(False, "empty", extracted)
    letter = _LETTER.match(extracted)
    if letter is not None:
        chosen = {letter.group(1).upper()}
    else:
        options = _OPTION.findall(task.question)
        chosen = {name for name, words in options if _fold(words) == _fold(extracted)}
    if len(chosen) == 1:
        golds = {match.group(1).upper() for match in map(_LETTER.match, task.answers) if match}
        return _make_score(bool(chosen & golds), "choice", extracted)
    return _make_score(False, "not judged", extracted)._replace(judged=False)


def gaia_correct(answer: str, gold: str) -> bool:
    """Return True if the official scorer accepts the answer."""
    if _is_number(gold):
        return _parse_number(answer) == float(gold)
    if _SEPARATOR.search(gold) is None:
        ours, theirs = (_squeeze(text).translate(_NO_PUNCTUATION) for text in (answer, gold))
        return ours == theirs
    items, gold_items = _SEPARATOR.split(answer), _SEPARATOR.split(gold)
    return len(items) == len(gold_items) and all(
        _parse_number(left) == float(right)
        if _is_number(right)
        else _squeeze(left) == _squeeze(right)
        for left, right in zip(items, gold_items, strict=True)
    )


def _make_score(value: bool | float, method: str, extracted: str) -> Score:
    # Lone surrogates, which no file could store, become question marks.
    shown = extracted[:200].encode("utf-8", "replace").decode()
    return Score(float(value), method, shown)


def _stated_number(text: str) -> Fraction | None:
    """Return the only number of a sentence that states one."""
    sentence = normalize_expression(_TEMPLATE_MARK.sub("", text))
    plain = _SENTENCE.fullmatch(sentence) and not _ATTACHED.search(sentence)
    return single_number(sentence) if plain and not _HEDGES.search(sentence) else None


def _plain_number(gold: str) -> Fraction | None:
    """Return the number that a reference is; None if it is anything else."""
    digits_only = re.fullmatch(r"[-+$\d.,\s]+", normalize_expression(gold))
    return single_number(gold) if digits_only else None


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.split()).strip(" .\u3002")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _parse_number(text: str) -> float:
    """Parse a number without its units; infinity if there is none, as in the original."""
    for sign in "$%,":
        text = text.replace(sign, "")
    return float(text) if _is_number(text) else float("inf")


def _squeeze(text: str) -> str:
    return _BLANK.sub("", text).lower()
