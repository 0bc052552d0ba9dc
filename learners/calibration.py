"""Stated confidence: asked for, read and compared with how often the answers were right.

The measure of Humanity's Last Exam (its authors' `calibration_error`); who states no confidence is
taken to be certain, as there. The authors' script leaves the last bin of 100 answers out and so has
no number below 100 answers and 0 below 200: it is reported beside the one that counts all of them.
"""

import re
from collections.abc import Sequence
from typing import Any

from benchmarks.metrics import calibration_error

REQUEST = (
    "Inside <answer>, before the box, state how sure you are that it is right, as in "
    "Confidence: 70%."
)
"""What is added to the instructions."""
BIN = 100
"""Answers of a bin."""
_STATED = re.compile(r"confidence\W{0,12}(\d{1,3}(?:\.\d{1,6})?)\s{0,2}(%?)", re.IGNORECASE)


def stated(text: str) -> float | None:
    """The last confidence that a text states, in [0, 1]; None where there is none.

    A number without a percent sign is a share if it has a decimal point and is at most 1.
    """
    found = None
    for number, percent in _STATED.findall(text):
        value = float(number)
        share = value if not percent and "." in number and value <= 1 else value / 100
        found = share if share <= 1 else found
    return found


def calibration(confidence: Sequence[float | None], correct: Sequence[bool]) -> dict[str, Any]:
    """The calibration error of answers.

    Args:
        confidence: as stated, None where nothing was.
        correct: of the same length, not empty.

    Returns:
        value: over all answers; official: as the authors' script, None where that fails; stated:
        how many stated a confidence.
    """
    sure = [1.0 if one is None else one for one in confidence]
    enough = len(sure) >= BIN
    return {
        "value": calibration_error(sure, correct, BIN),
        "official": calibration_error(sure, correct, BIN, count_last=False) if enough else None,
        "stated": sum(one is not None for one in confidence),
    }
