"""Where the rows of each evaluated set live, and which field holds the question."""

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.sources import HubTable, Row, text_field


def plain_question(row: Row) -> str:
    """The question under the spellings of the public sets."""
    return text_field(row, "question", "problem", "Question")


@dataclass(frozen=True)
class Evaluated:
    """The test rows of one benchmark."""

    folder: str
    """`<data_dir>/benchmarks/<folder>/test.*`."""
    hub: HubTable
    question: Callable[[Row], str] = plain_question


GSM8K = Evaluated(
    "gsm8k",
    HubTable("openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", "test", configs=("main",)),
)
GSM8K_TRAIN = HubTable(
    "openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", "train", configs=("main",)
)

EVALUATED: dict[str, Evaluated] = {"GSM8K": GSM8K}
"""By benchmark; training rows are compared with all of these."""
