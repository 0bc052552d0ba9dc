"""Common misspellings of the ids, each answered with the id that is meant.

Gymnasium suggests an id by comparing letters, and `gaia` shares none with `GAIA`. So every spelling
is registered; making it creates no environment and raises Gymnasium's own error.
"""

from __future__ import annotations

from typing import NoReturn

import gymnasium as gym

ENTRY_POINT = "envs.spellings:refuse"
"""The entry point of spellings; environments have another."""

SPELLINGS = {
    "AIME24": ("AIME24", "AIME2024", "AIME-24", "AIME_24", "AIME-2024", "AIME_2024"),
    "AIME25": ("AIME25", "AIME2025", "AIME-25", "AIME_25", "AIME-2025", "AIME_2025"),
    "MATH500": ("MATH500", "MATH-500", "MATH_500"),
    "MATH": ("MATH", "hendrycks_math", "hendrycks-math"),
    "GSM8K": ("GSM8K", "gsm8K", "GSM-8K", "GSM_8K", "GSM"),
    "WebWalker": ("WebWalker", "WebWalkerQA", "web-walker", "web_walker", "WebWalker-QA"),
    "HotpotQA": ("HotpotQA", "HotPotQA", "HotpotQa", "Hotpot", "hotpot_qa", "hotpot-qa"),
    "2WikiMultihopQA": (
        *("2WikiMultihopQA", "2WikiMultiHopQA", "2WikiMultihop", "2Wiki", "2WikiQA", "2WikiMQA"),
        *("2Wiki-MultihopQA", "2Wiki_MultihopQA"),
    ),
    "MuSiQue": ("MuSiQue", "MuSique", "MuSiQue-Ans", "MuSiQueQA"),
    "Bamboogle": ("Bamboogle",),
    "GAIA": ("GAIA",),
    "HLE": ("HLE", "HumanitysLastExam", "humanitys-last-exam", "humanitys_last_exam", "HLE-text"),
    "xbench-DeepSearch": (
        *("xbench-DeepSearch", "XBench", "xBench", "XBench-DeepSearch", "xbench_DeepSearch"),
        *("xbench-Deepsearch", "xbenchDeepSearch", "DeepSearch"),
    ),
    "SyntheticQA": ("SyntheticQA", "Synthetic", "synthetic-qa", "synthetic_qa"),
}
"""Spellings by benchmark; `misspellings` adds their lower, upper and title case."""


def misspellings() -> dict[str, str]:
    """Map every spelling that is not a benchmark's name to that name."""
    names = {}
    for name, spellings in SPELLINGS.items():
        for spelling in spellings:
            cases = (str.lower, str.upper, str.capitalize, str.title)
            forms = (spelling, *(case(spelling) for case in cases))
            names.update(dict.fromkeys(forms, name))
    return {spelling: name for spelling, name in names.items() if spelling not in SPELLINGS}


def refuse(spelling: str, name: str) -> NoReturn:
    """Raise Gymnasium's error that names the id that is meant.

    Raises:
        gymnasium.error.NameNotFound: always.
    """
    raise gym.error.NameNotFound(
        f"Environment `{spelling}` doesn't exist in namespace appo. Did you mean: `{name}`?"
    )


def register() -> None:
    """Register every spelling, once."""
    for spelling, name in misspellings().items():
        if f"appo/{spelling}-v0" not in gym.registry:
            gym.register(
                id=f"appo/{spelling}-v0",
                entry_point=ENTRY_POINT,
                kwargs={"spelling": spelling, "name": name},
            )
