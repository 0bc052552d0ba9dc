"""The public data set behind each benchmark, and the field that holds the question.

Revisions are commits of the public data sets. Some sets are only ever cited by a commit of the
hub's converted copy (of its branch refs/convert/parquet), or by none. Their rows are pinned
instead: a copy or a branch with other rows is refused.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass

from benchmarks import pinned_rows
from benchmarks.sources import DataUnavailable, HubTable, TableRow, get_text

_FLASHRAG = "RUC-NLPIR/FlashRAG_datasets"
_FLASHRAG_REVISION = "bcafb8dd07d453be3cbeeeb3f78be1841bddf92c"
_GSM8K_REVISION = "cc7b047b6e5bb11b4f1af84efc572db110a51b3c"
_MATH_SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)


def get_question(row: TableRow) -> str:
    """Return the question, under any field name of the public sets."""
    return get_text(row, "question", "problem", "Question", "prompt")


def decrypt_xbench(row: TableRow, *names: str) -> str:
    """Return a field of xbench: base64 of the text XOR the row's canary; plain without a canary.

    Decrypted in memory only: the owners ask that the plain text is not published.
    """
    text, key = get_text(row, *names), row.get("canary")
    if not isinstance(key, str) or not key:
        return text
    try:
        data, mask = base64.b64decode(text, validate=True), key.encode()
        return bytes(b ^ mask[i % len(mask)] for i, b in enumerate(data)).decode().strip()
    except ValueError as error:
        raise DataUnavailable(f"an xbench field cannot be decrypted: {error}") from error


@dataclass(frozen=True)
class EvaluatedSet:
    """The test rows of one benchmark."""

    folder: str
    """`<data_dir>/benchmarks/<folder>/test.*`."""
    hub: HubTable
    question: Callable[[TableRow], str] = get_question


EVALUATED: dict[str, EvaluatedSet] = {
    "AIME24": EvaluatedSet(
        "aime24",
        HubTable("HuggingFaceH4/aime_2024", "2fe88a2f1091d5048c0f36abc874fb997b3dd99a", "train"),
    ),
    "AIME25": EvaluatedSet(
        "aime25", HubTable("math-ai/aime25", "563bb8404243c5f09de6ec262f2db674fe5bce9b", "test")
    ),
    "MATH500": EvaluatedSet(
        "math500",
        HubTable("HuggingFaceH4/MATH-500", "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be", "test"),
    ),
    "GSM8K": EvaluatedSet(
        "gsm8k",
        HubTable("openai/gsm8k", _GSM8K_REVISION, "test", configs=("main",)),
    ),
    "MATH": EvaluatedSet(
        "math",
        HubTable(
            "EleutherAI/hendrycks_math",
            "21a5633873b6a120296cce3e2df9d5550074f4a3",
            "test",
            configs=_MATH_SUBJECTS,
        ),
    ),
    "WebWalker": EvaluatedSet(
        "webwalker",
        HubTable(
            "callanwu/WebWalkerQA",
            "96c160cc4408b8b7aa61df528054d4c28acfae74",
            "train",
            data_files="default/main/0000.parquet",
            pin=pinned_rows.WEBWALKER,
            fallback=HubTable("callanwu/WebWalkerQA", "main", "main"),
        ),
    ),
    "HotpotQA": EvaluatedSet(
        "hotpotqa",
        HubTable(
            "hotpotqa/hotpot_qa",
            "1908d6afbbead072334abe2965f91bd2709910ab",
            "train",
            data_files="distractor/validation-00000-of-00001.parquet",
            drop=("context", "supporting_facts"),
        ),
    ),
    "2WikiMultihopQA": EvaluatedSet(
        "2wiki",
        HubTable(
            _FLASHRAG,
            _FLASHRAG_REVISION,
            "train",
            data_files="2wikimultihopqa/dev.jsonl",
            drop=("metadata",),
        ),
    ),
    "MuSiQue": EvaluatedSet(
        "musique",
        HubTable(
            "dgslibisey/MuSiQue",
            "c8f4f8c9465fb69d31a8eae894c3fd509c4ca321",
            "train",
            data_files="musique_ans_v1.0_dev.jsonl",
            drop=("paragraphs", "question_decomposition"),
        ),
    ),
    "Bamboogle": EvaluatedSet(
        "bamboogle",
        HubTable(
            _FLASHRAG,
            _FLASHRAG_REVISION,
            "train",
            data_files="bamboogle/test.jsonl",
            drop=("metadata",),
        ),
    ),
    "GAIA": EvaluatedSet(
        "gaia",
        HubTable(
            "gaia-benchmark/GAIA",
            "682dd723ee1e1697e00360edccf2366dc8418dd9",
            "validation",
            configs=("2023_all",),
            gated=True,
        ),
    ),
    "HLE": EvaluatedSet(
        "hle",
        HubTable(
            "cais/hle",
            "5a81a4c7271a2a2a312b9a690f0c2fde837e4c29",
            "test",
            drop=("image_preview", "rationale_image"),
            gated=True,
        ),
    ),
    "xbench-DeepSearch": EvaluatedSet(
        "xbench",
        HubTable(
            "xbench/DeepSearch",
            "436bbed79aef5b19c857047650ab528be33c6680",
            "train",
            data_files="DeepSearch.csv",
        ),
        question=lambda row: decrypt_xbench(row, "question", "prompt"),
    ),
}
"""The test rows by benchmark; training rows are compared with all of them."""

GSM8K_TRAIN = HubTable("openai/gsm8k", _GSM8K_REVISION, "train", configs=("main",))
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
    fallback=HubTable(
        "dongguanting/ARPO-RL-DeepSearch-1K", "main", "train", data_files="hard_search.parquet"
    ),
)
