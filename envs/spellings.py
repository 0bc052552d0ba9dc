"""Common spellings of the ids, so that whoever types one is told the id as by Gymnasium itself.

Gymnasium compares names letter by letter: `gaia` shares none with `GAIA`, and no id would be named.
A spelling is therefore registered, makes no environment and raises Gymnasium's own error.
"""

from __future__ import annotations

from typing import NoReturn

import gymnasium as gym

ENTRY_POINT = "envs.spellings:refuse"
"""Of a registered spelling: what tells it from an environment."""


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
"""By the name of the benchmark; `known` adds each in lower and upper case and with capitals."""


def known() -> dict[str, str]:
    """The benchmark's name by every spelling that is none."""
    found = {}
    for name, spellings in SPELLINGS.items():
        for given in spellings:
            forms = (given, given.lower(), given.upper(), given.capitalize(), given.title())
            found.update(dict.fromkeys(forms, name))
    return {spelling: name for spelling, name in found.items() if spelling not in SPELLINGS}


def refuse(spelling: str, name: str) -> NoReturn:
    """Say which id is meant.

    Raises:
        gymnasium.error.NameNotFound: always.
    """
    raise gym.error.NameNotFound(
        f"Environment `{spelling}` doesn't exist in namespace appo. Did you mean: `{name}`?"
    )


def register() -> None:
    """Register every spelling, once."""
    for spelling, name in known().items():
        if f"appo/{spelling}-v0" not in gym.registry:
            gym.register(
                id=f"appo/{spelling}-v0",
                entry_point=ENTRY_POINT,
                kwargs={"spelling": spelling, "name": name},
            )
