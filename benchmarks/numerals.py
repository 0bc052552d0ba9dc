"""Reads plain numbers out of short answers, exactly and without evaluating anything."""

import re
import unicodedata
from fractions import Fraction

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
