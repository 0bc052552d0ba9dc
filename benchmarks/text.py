"""What text scorers share: boxed content, SQuAD's normalisation, exact match, token F1."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction

LONGEST_ANSWER = 20_000
"""Characters; of a longer answer only the end is read."""

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*")


_BRACE = re.compile(r"\\\\|\\[{}]|[{}]")


_BARE = re.compile(r"[^\s$\\{}<>]+")


_ARTICLES = re.compile(r"\b(a|an|the)\b")


_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


_ONE_WORD = frozenset({"yes", "no", "noanswer"})


_CJK = re.compile(r"([\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff])")


def last_boxed(text: str) -> str | None:
    r"""Content of the last balanced \boxed{...}; None where there is none.

    Escaped braces do not count; \fbox{5}, \boxed {5} and \boxed 5 are read too. Linear in the text.
    """
    text = text[-LONGEST_ANSWER:]
    boxes = list(_BOX.finditer(text))
    if not boxes:
        return None
    ends: dict[int, int] = {}
    opened: list[int] = []
    for brace in _BRACE.finditer(text):
        if brace.group() == "{":
            opened.append(brace.start())
        elif brace.group() == "}" and opened:
            ends[opened.pop()] = brace.start()
    for box in reversed(boxes):
        start = box.end()
        if start in ends:
            return text[start + 1 : ends[start]].strip()
        bare = _BARE.match(text, start)
        if bare is not None:
            return bare.group().rstrip(".,;")
    return None


def normalize_answer(text: str) -> str:
    """SQuAD's normalisation: lower case, no ASCII punctuation, no articles, single blanks."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_NO_PUNCTUATION)).split())


def overlap_f1(ours: Sequence[str], theirs: Sequence[str]) -> float:
    """Harmonic mean of precision and recall over tokens with multiplicity."""
    shared = sum((Counter(ours) & Counter(theirs)).values())
    if not shared:
        return 0.0
    precision, recall = shared / len(ours), shared / len(theirs)
    return 2 * precision * recall / (precision + recall)


def token_f1(prediction: str, gold: str) -> float:
    """HotpotQA's F1 over words; 0 where either side is yes, no or noanswer and they differ."""
    left, right = normalize_answer(prediction), normalize_answer(gold)
    if left != right and (left in _ONE_WORD or right in _ONE_WORD):
        return 0.0
    return overlap_f1(left.split(), right.split())


def musique_f1(prediction: str, gold: str) -> float:
    """MuSiQue's F1: no rule for yes and no; 1 where both sides normalise to nothing."""
    left, right = normalize_answer(prediction).split(), normalize_answer(gold).split()
    return overlap_f1(left, right) if left and right else float(left == right)


def exact_match(prediction: str, gold: str) -> bool:
    """Equal after SQuAD's normalisation, and something is left to compare.

    The official scripts call any two texts equal that normalise to nothing ("A" and "...").
    """
    left = normalize_answer(prediction)
    if not left:
        return bool(prediction.strip()) and prediction.strip().lower() == gold.strip().lower()
    return left == normalize_answer(gold)


def best_f1(prediction: str, golds: Iterable[str], language: str = "en") -> float:
    """Largest token F1 over the references; in Chinese every character is a token.

    1 for an exact match, also of what normalises to nothing, such as the option "A".
    """
    golds = tuple(golds)
    if any(exact_match(prediction, gold) for gold in golds):
        return 1.0
    if language == "zh":
        prediction = _CJK.sub(r" \1 ", prediction)
        golds = tuple(_CJK.sub(r" \1 ", gold) for gold in golds)
    return max((token_f1(prediction, gold) for gold in golds), default=0.0)


LONGEST_NUMERAL = 60
"""Characters; what is longer is no answer to a word problem and would only cost time."""

_GROUPED = r"\d{1,3}(?:,\d{3})+(?!\d)"


_NUMERAL = re.compile(rf"(?<![\w.])[-+]?\s?(?:{_GROUPED}|\d+)(?:\.\d+)?(?!\d)|(?<![\w.])[-+]?\.\d+")


_LATEX_NOISE = re.compile(r"\\[!,;:]|\\(?:left|right|displaystyle)\b|\\?\$|£|€")


_MINUS = str.maketrans(dict.fromkeys("\u2212\u2013\u2012\ufe63\uff0d", "-"))


def plain(text: str) -> str:
    """Compatibility forms, minus signs, currency and LaTeX spacing reduced to plain ASCII."""
    text = unicodedata.normalize("NFKC", text.translate(_MINUS)).replace("{,}", ",")
    return _LATEX_NOISE.sub("", text)


def numerals(text: str) -> list[Fraction]:
    """Every number written in the text, in order; thousands separators allowed."""
    found = []
    for match in _NUMERAL.finditer(plain(text)):
        digits = match.group().replace(",", "").replace(" ", "")
        if len(digits) <= LONGEST_NUMERAL:
            found.append(Fraction(digits))
    return found


def the_number(text: str) -> Fraction | None:
    """The only number in the text; None where there is none or where several would be a choice."""
    found = set(numerals(text))
    return found.pop() if len(found) == 1 else None
