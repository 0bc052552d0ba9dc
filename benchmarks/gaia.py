"""GAIA's own scorer: quasi exact match of numbers, comma lists and strings.

Its oddities are kept, because its numbers are to be compared: a gold with a comma is a list, list
order counts, only ASCII punctuation is ignored, no synonyms.
"""

import re
import string

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
