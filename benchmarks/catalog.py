"""Where the rows of each evaluated set live, and which field holds the question.

Revisions are commits of the public data sets. Where only a commit of the hub's converted copy is
stated anywhere (of its branch refs/convert/parquet), or none, the rows that were seen are the pin:
a copy or a branch that holds others is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import pinned_rows
from benchmarks.sources import DataUnavailable, HubTable, Row, text_field

FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"


FLASHRAG_REVISION = "bcafb8dd07d453be3cbeeeb3f78be1841bddf92c"


SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def plain_question(row: Row) -> str:
    """The question under the spellings of the public sets."""
    return text_field(row, "question", "problem", "Question", "prompt")


def xbench_text(row: Row, *names: str) -> str:
    """A field of xbench: base64 of the text XOR the row's canary, or plain where there is none.

    Decrypted in memory only: the owners ask that the plain text is not published.
    """
    text, key = text_field(row, *names), row.get("canary")
    if not isinstance(key, str) or not key:
        return text
    try:
        data, mask = base64.b64decode(text, validate=True), key.encode()
        return bytes(b ^ mask[i % len(mask)] for i, b in enumerate(data)).decode().strip()
    except ValueError as error:
        raise DataUnavailable(f"an xbench field cannot be decrypted: {error}") from error


@dataclass(frozen=True)
class Evaluated:
    """The test rows of one benchmark."""

    folder: str
    """`<data_dir>/benchmarks/<folder>/test.*`."""
    hub: HubTable
    question: Callable[[Row], str] = plain_question


EVALUATED: dict[str, Evaluated] = {
    "AIME24": Evaluated(
        "aime24",
        HubTable("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train"),
    ),
    "AIME25": Evaluated(
        "aime25", HubTable("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test")
    ),
    "MATH500": Evaluated(
        "math500",
        HubTable("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test"),
    ),
    "GSM8K": Evaluated(
        "gsm8k",
        HubTable(
            "openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", "test", configs=("main",)
        ),
    ),
    "MATH": Evaluated(
        "math",
        HubTable(
            "EleutherAI/hendrycks_math",
            "21a5633873b6a120296cce3e2df9d5550074f4a3",
            "test",
            configs=SUBJECTS,
        ),
    ),
    "WebWalker": Evaluated(
        "webwalker",
        HubTable(
            "callanwu/WebWalkerQA",
            "96c160cc4408b8b7aa61df528054d4c28acfae74",
            "train",
            data_files="default/main/0000.parquet",
            pin=pinned_rows.WEBWALKER,
            instead=HubTable("callanwu/WebWalkerQA", "main", "main"),
        ),
    ),
    "HotpotQA": Evaluated(
        "hotpotqa",
        HubTable(
            "hotpotqa/hotpot_qa",
            "1908d6afbbead072334abe2965f91bd2709910ab",
            "train",
            data_files="distractor/validation-00000-of-00001.parquet",
            drop=("context", "supporting_facts"),
        ),
    ),
    "2WikiMultihopQA": Evaluated(
        "2wiki",
        HubTable(
            FLASHRAG,
            FLASHRAG_REVISION,
            "train",
            data_files="2wikimultihopqa/dev.jsonl",
            drop=("metadata",),
        ),
    ),
    "MuSiQue": Evaluated(
        "musique",
        HubTable(
            "dgslibisey/MuSiQue",
            "c8f4f8c9465fb69d31a8eae894c3fd509c4ca321",
            "train",
            data_files="musique_ans_v1.0_dev.jsonl",
            drop=("paragraphs", "question_decomposition"),
        ),
    ),
    "Bamboogle": Evaluated(
        "bamboogle",
        HubTable(
            FLASHRAG,
            FLASHRAG_REVISION,
            "train",
            data_files="bamboogle/test.jsonl",
            drop=("metadata",),
        ),
    ),
    "GAIA": Evaluated(
        "gaia",
        HubTable(
            "gaia-benchmark/GAIA",
            "682dd723ee1e1697e00360edccf2366dc8418dd9",
            "validation",
            configs=("2023_all",),
            gated=True,
        ),
    ),
    "HLE": Evaluated(
        "hle",
        HubTable(
            "cais/hle",
            "5a81a4c7271a2a2a312b9a690f0c2fde837e4c29",
            "test",
            drop=("image_preview", "rationale_image"),
            gated=True,
        ),
    ),
    "xbench-DeepSearch": Evaluated(
        "xbench",
        HubTable(
            "xbench/DeepSearch",
            "436bbed79aef5b19c857047650ab528be33c6680",
            "train",
            data_files="DeepSearch.csv",
        ),
        question=lambda row: xbench_text(row, "question", "prompt"),
    ),
}
"""By benchmark; training rows are compared with all of these."""

GSM8K_TRAIN = HubTable(
    "openai/gsm8k", "cc7b047b6e5bb11b4f1af84efc572db110a51b3c", "train", configs=("main",)
)


REASONING_TRAIN = HubTable(
    "dongguanting/ARPO-RL-Reasoning-10K",
    "main",
    "train",
    data_files="train_10k.parquet",
    pin=pinned_rows.REASONING,
)


DEEP_SEARCH_TRAIN = HubTable(
    "dongguanting/ARPO-RL-DeepSearch-1K",
    "a2ae7e31cd6fecee7457c8dc34e75a5fc5504762",
    "train",
    data_files="default/train/0000.parquet",
    pin=pinned_rows.DEEP_SEARCH,
    instead=HubTable(
        "dongguanting/ARPO-RL-DeepSearch-1K", "main", "train", data_files="hard_search.parquet"
    ),
)
