"""Boxed content, SQuAD's normalisation, exact match, token F1 and numerals, for the scorers."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

MAX_ANSWER_CHARACTERS = 20_000
"""Only the end of a longer answer is read."""
MAX_NUMERAL_CHARACTERS = 60
"""A longer numeral does not answer a word problem and would only cost time."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")
_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")
_BARE = re.compile(r"[^\s$\\{}<>]+")
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ONE_WORD = frozenset({"yes", "no", "noanswer"})
_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")
_GROUPED = r"\d{1,3}(?:,\d{3})+(?!\d)"
_NUMERAL = re.compile(rf"(?<![\w.])[-+]?\s?(?:{_GROUPED}|\d+)(?:\.\d+)?(?!\d)|(?<![\w.])[-+]?\.\d+")
_LATEX_NOISE = re.compile(r"\\[!,;:]|\\(?:left|right|displaystyle)\b|\\?\$|£|€")
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-"))


def last_boxed(text: str) -> str | None:
    r"""Return the content of the last balanced \boxed{...}; None if there is none.

    Escaped braces do not count; \fbox{5}, \boxed {5} and \boxed 5 are read too. Takes linear time.
    """
    text = text[-MAX_ANSWER_CHARACTERS:]
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    ends: dict[int, int] = {}
    open_braces: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            open_braces.append(brace.start())
        elif brace.group() == "}" and open_braces:
            ends[open_braces.pop()] = brace.start()
    for box in reversed(boxes):
        start = box.end()
        if start in ends:
            return text[start + 1 : ends[start]].strip()
        bare = _BARE.match(text, start)
        if bare is not None:
            return bare.group().rstrip(".,;")
    return None


def normalize_answer(text: str) -> str:
    """Normalise as SQuAD does: lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def overlap_f1(prediction: Sequence[str], gold: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens with multiplicity."""
    shared = sum((Counter(prediction) & Counter(gold)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(prediction), shared / len(gold)
    return 2 * precision * recall / (precision + recall)


def token_f1(prediction: str, gold: str) -> float:
    """HotpotQA's F1 over words; 0 if either side is yes, no or noanswer and they differ."""
    left, right = normalize_answer(prediction), normalize_answer(gold)
    if left != right and (left in _ONE_WORD or right in _ONE_WORD):
        return 0.0
    return overlap_f1(left.split(), right.split())


def musique_f1(prediction: str, gold: str) -> float:
    """MuSiQue's F1: no rule for yes and no; 1 if both sides normalise to nothing."""
    left, right = normalize_answer(prediction).split(), normalize_answer(gold).split()
    return overlap_f1(left, right) if left and right else float(left == right)


def exact_match(prediction: str, gold: str) -> bool:
    """Return True if the texts are equal after SQuAD's normalisation.

    The official scripts equate any two texts that normalise to nothing ("A" and "..."); here such
    texts must be equal up to case.
    """
    left = normalize_answer(prediction)
    if not left:
        return bool(prediction.strip()) and prediction.strip().lower() == gold.strip().lower()
    return left == normalize_answer(gold)


def best_f1(prediction: str, golds: Iterable[str], language: str = "en") -> float:
    """Largest token F1 over the references; in Chinese every character is a token.

    1 for an exact match, even if it normalises to nothing, such as the option "A".
    """
    golds = tuple(golds)
    if any(exact_match(prediction, gold) for gold in golds):
        return 1.0
    if language == "zh":
        prediction = _CJK.sub(r" \1 ", prediction)
        golds = tuple(_CJK.sub(r" \1 ", gold) for gold in golds)
    return max((token_f1(prediction, gold) for gold in golds), default=0.0)


def single_number(text: str) -> Fraction | None:
    """Return the only number in the text; None if there is none or a choice of several."""
    numbers = set(_extract_numbers(text))
    return numbers.pop() if len(numbers) == 1 else None


def _extract_numbers(text: str) -> list[Fraction]:
    """Return every number written in the text, in order; thousands separators are allowed."""
    numbers = []
    for match in _NUMERAL.finditer(_simplify_symbols(text)):
        digits = match.group().replace(",", "").replace(" ", "")
        if len(digits) <= MAX_NUMERAL_CHARACTERS:
            numbers.append(Fraction(digits))
    return numbers


def _simplify_symbols(text: str) -> str:
    """Reduce compatibility forms, minus signs, currency and LaTeX spacing to plain ASCII."""
    text = unicodedata.normalize("NFKC", text.translate(_MINUS)).replace("{,}", ",")
    return _LATEX_NOISE.sub("", text)
