r"""Whether two short mathematical answers are equal: cheap exact tests first, then math-verify.

`spelling` reduces both sides to one way of writing; what is then equal, a plain number,
a word or an option letter is decided here, and only the rest costs a call into a grading process.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from benchmarks.math_pool import shared_pool

LONGEST_EXPRESSION = 600
"""Characters; no reference is longer than 200."""


DEEPEST_NESTING = 40


LONGEST_NUMERAL = 100


LARGEST_EXPONENT = 30
"""Of a decimal written with e."""

_SYMBOLS = {
    "\u2212": "-",
    "\u2013": "-",
    "\u00d7": r"\times ",
    "\u00b7": r"\cdot ",
    "\u00f7": "/",
    "\u03c0": r"\pi ",
    "\u221e": r"\infty ",
    "\u00b0": r"^\circ",
    "\u2264": r"\le ",
    "\u2265": r"\ge ",
    "\u00b1": r"\pm ",
    "\u222a": r"\cup ",
    "\u2208": r"\in ",
    "\u20ac": "",
    "\u00a3": "",
    "\u2044": "/",
    "\u200b": "",
}


_RAISED = re.compile("[\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+")


_ROOT = re.compile("\u221a" + r"\s*(\d+|[A-Za-z]|\(([^()]*)\))")


_WRAPPERS = re.compile(r"\\(?:text|textbf|textit|textrm|mathrm|mathbf|mbox|rm|bf)\s*\{([^{}]*)\}")


_NOISE = re.compile(
    r"\\(?:left|right|displaystyle|limits|bigl|bigr|big)(?![A-Za-z])|(?<!\\)\\[!,;: ]|~"
)


_LEAD_IN = re.compile(
    r"^(?:so |thus |therefore |hence )?(?:the )?(?:final )?answer(?: is)?[:=]?\s+", re.I
)


_ASSIGNED = re.compile(r"^[A-Za-z](?:_\{?\w\}?)?\s*=\s*(?=\S)(?!.*=)")


_GROUPS = re.compile(r"(?<![\d.,])[-+]?\d{1,3}(?:,\d{3})+(?![\d,])")


_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")


_UNIT_WORD = r"[A-Za-z]{2,}\.?(?:/[A-Za-z]+)?(?:\s?\^\{?[23]\}?)?"


_UNIT = re.compile(rf"\s*(?:\^\{{?\\circ\}}?|{_UNIT_WORD}(?:\s+{_UNIT_WORD}){{0,4}})")


_WORDS = re.compile(r"^[A-Za-z]{2,}(?:[ -][A-Za-z]+)*$")


_BASED = re.compile(r"^(\w+)_\{?(\d+)\}?$")


_MIXED = re.compile(r"^([-+]?\d+) (\d+)/(\d+)$")


_CHOICE = re.compile(r"^\(?([A-Z])\)?$")


_NOT_UNITS = frozenset(
    {
        "or",
        "and",
        "not",
        "no",
        "except",
        "never",
        "between",
        "less",
        "more",
        "than",
        "least",
        "most",
    }
    | {
        "about",
        "squared",
        "cubed",
        "pi",
        "sqrt",
        "sin",
        "cos",
        "tan",
        "log",
        "ln",
        "exp",
        "mod",
        "choose",
        "times",
    }
    | {"infinity", "hundred", "thousand", "million", "billion", "trillion", "dozen", "half"}
)
"""Words that change what a number before them means."""


_MATRIX = re.compile(r"^\[\s*\[(.*)\]\s*\]$", re.S)


class Equality(NamedTuple):
    """A verdict and what made it."""

    equal: bool
    method: str
    """exact, number, word, math; math-timeout and math-error where the comparison was given up."""


class _Number(NamedTuple):
    value: Fraction
    percent: bool
    unit: str


def math_equal(answer: str, gold: str) -> Equality:
    """Whether two answers mean the same; the gold decides about units and percent signs.

    Raises:
        benchmarks.math_pool.GraderUnavailable: the grading process cannot be had.
    """
    if len(answer) > LONGEST_EXPRESSION:
        return Equality(answer.strip() == gold.strip(), "too long")
    ours, theirs = spelling(answer), spelling(gold)
    if not ours or not theirs:
        return Equality(False, "empty")
    if _squeezed(ours) == _squeezed(theirs):
        return Equality(True, "exact")
    names = {name.group() for name in map(_ASSIGNED.match, (ours, theirs)) if name is not None}
    if len({_squeezed(name) for name in names}) == 2:
        return Equality(False, "number")
    left, right = _number(_value(ours)), _number(_value(theirs))
    if left is not None and right is not None:
        return Equality(_same_number(left, right), "number")
    if _is_word(ours) and _is_word(theirs):
        return Equality(_letters(ours) == _letters(theirs), "word")
    if _nesting(ours) > DEEPEST_NESTING:
        return Equality(False, "too deep")
    bases = (_BASED.match(ours), _BASED.match(theirs))
    if bases[0] is not None and bases[1] is not None:
        return Equality(bases[0].groups() == bases[1].groups(), "number")
    letter = shared_pool().verdict(ours, theirs)
    return Equality(letter == "1", {"t": "math-timeout", "e": "math-error"}.get(letter, "math"))


def spelling(text: str) -> str:
    """One way of writing: ASCII and LaTeX symbols, no wrappers, no dollar signs, no final stop."""
    text = _ROOT.sub(lambda m: rf"\sqrt{{{m.group(2) or m.group(1)}}}", text)
    text = _RAISED.sub(lambda m: f"^{{{unicodedata.normalize('NFKC', m.group())}}}", text)
    text = unicodedata.normalize("NFKC", text)
    text = "".join(_SYMBOLS.get(char, char) for char in text).strip()
    text = re.sub(r"\\[dt]frac", r"\\frac", text).replace("{,}", ",").replace(r"\%", "%")
    text = _NOISE.sub(lambda m: " " if m.group() in ("\\ ", "~") else "", text)
    for _ in range(3):
        text = _WRAPPERS.sub(r" \1 ", text)
    text = text.replace(r"\(", "").replace(r"\)", "").replace(r"\$", "").replace("$", "")
    text = _LEAD_IN.sub("", text.strip()).strip().removesuffix(".").strip()
    while text.startswith("{") and text.endswith("}") and _nesting(text[1:-1]) >= 0:
        text = text[1:-1].strip()
    matrix = _MATRIX.match(text)
    if matrix is not None:
        rows = re.split(r"\]\s*,\s*\[", matrix.group(1))
        body = r" \\ ".join(row.replace(",", " & ") for row in rows)
        text = rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"
    text = " ".join(_GROUPS.sub(lambda m: m.group().replace(",", ""), text).split())
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def _squeezed(text: str) -> str:
    choice = _CHOICE.match(text)
    return choice.group(1) if choice else text.replace(" ", "")


def _value(text: str) -> str:
    return _ASSIGNED.sub("", text)


def _number(text: str) -> _Number | None:
    """A numeral with at most a sign of percent or words of a unit behind it."""
    match = _NUMBER.match(text)
    if match is None or len(match.group()) > LONGEST_NUMERAL:
        return None
    digits, rest = match.group(), text[match.end() :].strip()
    exponent = re.search(r"[eE][-+]?(\d+)$", digits)
    if exponent is not None and int(exponent.group(1)) > LARGEST_EXPONENT:
        return None
    percent = rest.lower() in ("%", "percent")
    if rest and not percent and not _is_unit(text[match.end() :], rest):
        return None
    unit = "" if percent else _letters(rest).replace("circ", "degree").removesuffix("s")
    return _Number(Fraction(digits.rstrip(".")), percent, unit)


def _is_unit(tail: str, rest: str) -> bool:
    words = re.findall(r"[a-z]+", rest.lower())
    return _UNIT.fullmatch(tail) is not None and _NOT_UNITS.isdisjoint(words)


def _same_number(ours: _Number, theirs: _Number) -> bool:
    if ours.unit and theirs.unit and ours.unit != theirs.unit:
        return False
    if ours.value == theirs.value:
        return True
    if ours.percent and not theirs.percent and not theirs.unit:
        return ours.value / 100 == theirs.value
    return theirs.percent and not ours.percent and ours.value * 100 == theirs.value


def _is_word(text: str) -> bool:
    return _WORDS.match(text) is not None and len(_letters(text)) > 2


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _nesting(text: str) -> int:
    """Deepest bracket level; -1 where curly braces do not balance."""
    depth = deepest = curly = 0
    for char in re.sub(r"\\\\|\\[{}]", "", text):
        if char in "{[(":
            depth, curly = depth + 1, curly + (char == "{")
            deepest = max(deepest, depth)
        elif char in ")]}":
            depth, curly = depth - 1, curly - (char == "}")
            if curly < 0:
                return -1
    return deepest if curly == 0 else -1
