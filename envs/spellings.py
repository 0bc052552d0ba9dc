"""Common spellings of the ids, so that whoever types one is told the id as by Gymnasium itself.

Gymnasium compares names letter by letter: `gaia` shares none with `GAIA`, and no id would be named.
A spelling is therefore registered, makes no environment and raises Gymnasium's own error.
"""

from typing import NoReturn

import gymnasium as gym

ENTRY_POINT = "envs.spellings:refuse"
"""Of a registered spelling: what tells it from an environment."""
SPELLINGS = {
    "AIME24": ("aime24", "AIME2024", "aime2024", "AIME-24", "aime-24", "AIME_2024", "aime_2024"),
    "AIME25": ("aime25", "AIME2025", "aime2025", "AIME-25", "aime-25", "AIME_2025", "aime_2025"),
    "MATH500": ("math500", "Math500", "MATH-500", "math-500", "MATH_500", "math_500"),
    "MATH": ("math", "Math", "hendrycks_math"),
    "GSM8K": ("gsm8k", "Gsm8k", "GSM-8K", "gsm-8k", "gsm"),
    "WebWalker": ("webwalker", "WebWalkerQA", "webwalkerqa", "web-walker"),
    "HotpotQA": ("hotpotqa", "HotPotQA", "Hotpot", "hotpot", "hotpot_qa"),
    "2WikiMultihopQA": ("2wiki", "2Wiki", "2WikiMultiHopQA", "2wikimultihopqa", "2WikiQA"),
    "MuSiQue": ("musique", "Musique", "MUSIQUE"),
    "Bamboogle": ("bamboogle", "BAMBOOGLE"),
    "GAIA": ("gaia", "Gaia"),
    "HLE": ("hle", "Hle", "HumanitysLastExam", "humanitys-last-exam", "HLE-text"),
    "xbench-DeepSearch": (
        *("XBench", "xbench", "xBench", "Xbench", "XBENCH"),
        *("XBench-DeepSearch", "xbench-deepsearch", "xbench_deepsearch", "DeepSearch"),
    ),
    "SyntheticQA": ("syntheticqa", "Synthetic", "synthetic", "synthetic-qa"),
}
"""By the name of the benchmark."""


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
    for name, spellings in SPELLINGS.items():
        for spelling in spellings:
            if f"appo/{spelling}-v0" not in gym.registry:
                gym.register(
                    id=f"appo/{spelling}-v0",
                    entry_point=ENTRY_POINT,
                    kwargs={"spelling": spelling, "name": name},
                )
