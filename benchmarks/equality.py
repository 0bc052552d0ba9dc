r"""Equality of two short mathematical answers: cheap exact tests first, then math-verify.

`normalize_expression` writes both sides in one way. Equal spellings, plain numbers, words and
option letters are then decided here; only the rest costs a call into a grading process.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from typing import NamedTuple

from benchmarks.math_pool import shared_pool

MAX_EXPRESSION_CHARACTERS = 600
"""No reference is longer than 200."""
MAX_NESTING = 40
MAX_NUMERAL_CHARACTERS = 100
MAX_EXPONENT = 30
"""Largest exponent of a decimal written with e."""

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
_ASSIGNMENT = re.compile(r"^[A-Za-z](?:_\{?\w\}?)?\s*=\s*(?=\S)(?!.*=)")
_GROUPS = re.compile(r"(?<![\d.,])[-+]?\d{1,3}(?:,\d{3})+(?![\d,])")
_NUMBER = re.compile(r"[-+]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d{1,3})?")
_UNIT_WORD = r"[A-Za-z]{2,}\.?(?:/[A-Za-z]+)?(?:\s?\^\{?[23]\}?)?"
_UNIT = re.compile(rf"\s*(?:\^\{{?\\circ\}}?|{_UNIT_WORD}(?:\s+{_UNIT_WORD}){{0,4}})")
_WORDS = re.compile(r"^[A-Za-z]{2,}(?:[ -][A-Za-z]+)*$")
_IN_BASE = re.compile(r"^(\w+)_\{?(\d+)\}?$")
_MIXED = re.compile(r"^([-+]?\d+) (\d+)/(\d+)$")
_CHOICE = re.compile(r"^\(?([A-Z])\)?$")
_MATRIX = re.compile(r"^\[\s*\[(.*)\]\s*\]$", re.S)
_NOT_UNITS = frozenset(
    re.findall(
        r"\w+",
        "or and not no except never between less more than least most about squared cubed pi sqrt"
        " sin cos tan log ln exp mod choose times infinity hundred thousand million billion"
        " trillion dozen half",
    )
)
"""Words that change the meaning of a number before them."""


class Equality(NamedTuple):
    """A verdict and the test that decided it."""

    equal: bool
    method: str
    """exact, number, word, math; math-timeout and math-error if the comparison was given up; empty,
    too long and too deep if there was none."""


class _Number(NamedTuple):
    value: Fraction
    percent: bool
    unit: str


def math_equal(answer: str, gold: str) -> Equality:
    """Compare two answers by their meaning; the gold decides about units and percent signs.

    Raises:
        benchmarks.math_pool.GraderUnavailable: there is no grading process.
    """
    if len(answer) > MAX_EXPRESSION_CHARACTERS:
        return Equality(answer.strip() == gold.strip(), "too long")
    ours, theirs = normalize_expression(answer), normalize_expression(gold)
    if not ours or not theirs:
        return Equality(False, "empty")
    if _compact(ours) == _compact(theirs):
        return Equality(True, "exact")
    names = {name.group() for name in map(_ASSIGNMENT.match, (ours, theirs)) if name is not None}
    if len({_compact(name) for name in names}) == 2:
        return Equality(False, "number")
    left, right = (_parse_number(_ASSIGNMENT.sub("", text)) for text in (ours, theirs))
    if left is not None and right is not None:
        return Equality(_numbers_equal(left, right), "number")
    if _is_word(ours) and _is_word(theirs):
        return Equality(_alphanumerics(ours) == _alphanumerics(theirs), "word")
    if _nesting_depth(ours) > MAX_NESTING:
        return Equality(False, "too deep")
    bases = (_IN_BASE.match(ours), _IN_BASE.match(theirs))
    if bases[0] is not None and bases[1] is not None:
        return Equality(bases[0].groups() == bases[1].groups(), "number")
    verdict = shared_pool().compare(ours, theirs)
    return Equality(verdict == "1", {"t": "math-timeout", "e": "math-error"}.get(verdict, "math"))


def normalize_expression(text: str) -> str:
    """Write an expression in ASCII and LaTeX, without wrappers, dollar signs and final stop."""
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
    while text.startswith("{") and text.endswith("}") and _nesting_depth(text[1:-1]) >= 0:
        text = text[1:-1].strip()
    matrix = _MATRIX.match(text)
    if matrix is not None:
        rows = re.split(r"\]\s*,\s*\[", matrix.group(1))
        body = r" \\ ".join(row.replace(",", " & ") for row in rows)
        text = rf"\begin{{pmatrix}} {body} \end{{pmatrix}}"
    text = " ".join(_GROUPS.sub(lambda m: m.group().replace(",", ""), text).split())
    return _MIXED.sub(r"\1\\frac{\2}{\3}", text)


def _compact(text: str) -> str:
    """Drop blanks, and the brackets of an option letter."""
    choice = _CHOICE.match(text)
    return choice.group(1) if choice else text.replace(" ", "")


def _parse_number(text: str) -> _Number | None:
    """Parse a numeral, maybe followed by a percent sign or the words of a unit."""
    match = _NUMBER.match(text)
    if match is None or len(match.group()) > MAX_NUMERAL_CHARACTERS:
        return None
    digits, rest = match.group(), text[match.end() :].strip()
    exponent = re.search(r"[eE][-+]?(\d+)$", digits)
    if exponent is not None and int(exponent.group(1)) > MAX_EXPONENT:
        return None
    percent = rest.lower() in ("%", "percent")
    if rest and not percent and not _is_unit(text[match.end() :], rest):
        return None
    unit = "" if percent else _alphanumerics(rest).replace("circ", "degree").removesuffix("s")
    return _Number(Fraction(digits.rstrip(".")), percent, unit)


def _is_unit(tail: str, rest: str) -> bool:
    words = re.findall(r"[a-z]+", rest.lower())
    return _UNIT.fullmatch(tail) is not None and _NOT_UNITS.isdisjoint(words)


def _numbers_equal(ours: _Number, theirs: _Number) -> bool:
    if ours.unit and theirs.unit and ours.unit != theirs.unit:
        return False
    if ours.value == theirs.value:
        return True
    if ours.percent and not theirs.percent and not theirs.unit:
        return ours.value / 100 == theirs.value
    return theirs.percent and not ours.percent and ours.value * 100 == theirs.value


def _is_word(text: str) -> bool:
    return _WORDS.match(text) is not None and len(_alphanumerics(text)) > 2


def _alphanumerics(text: str) -> str:
    return "".join(filter(str.isalnum, text.casefold()))


def _nesting_depth(text: str) -> int:
    """Return the depth of brackets; -1 if curly braces do not balance."""
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
