"""WebWalker, GAIA, HLE and xbench-DeepSearch: questions for the open web."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.benchmark import Benchmark, Scorer, Task
from benchmarks.catalog import EVALUATED, decrypt_xbench
from benchmarks.loading import DEEP_SEARCH_ROWS, ParseRow, SkipRow, TableLoad
from benchmarks.multihop_qa import accepted_answers
from benchmarks.scoring import score_choice, score_exact, score_f1, score_gaia
from benchmarks.sources import TableRow, get_id, get_text, question_id

GAIA_FORMAT = (
    "The answer is a number, as few words as possible, or a comma separated list of these. Write a "
    "number in digits, without thousands separators and without units such as $ or % unless the "
    "question asks for them. Write words without articles and abbreviations."
)
"""GAIA's rules for writing an answer, for the prompt."""

_CHINESE = re.compile("[\u4e00-\u9fff]")


def parse_webwalker(row: TableRow, counts: Counter[str]) -> Task:
    """Parse {question, answer, root_url, info}."""
    question = get_text(row, "question")
    info = row.get("info")
    info = info if isinstance(info, Mapping) else {}
    metadata = {
        name: str(info[name]) for name in ("type", "difficulty_level", "domain") if name in info
    }
    if row.get("root_url"):
        metadata["root_url"] = str(row["root_url"])
    return Task(
        question_id(question),
        question,
        accepted_answers(row),
        "free",
        _detect_language(question, info.get("lang")),
        metadata=tuple(metadata.items()),
    )


def parse_gaia(row: TableRow, counts: Counter[str]) -> Task:
    """Parse {task_id, Question, Final answer | answer, Level, file_path}."""
    answer = get_text(row, "Final answer", "answer")
    if answer == "?":
        raise SkipRow("its answer is withheld")
    file = str(row.get("file_path") or row.get("file_name") or "")  # relative to the set's folder
    question = get_text(row, "Question", "question")
    if file:
        question += f"\n\nThe attached file is in Python's folder: {Path(file).name}"
    return Task(
        get_text(row, "task_id"),
        question,
        (answer,),
        attachments=(file,) if file else (),
        restricted=True,
        metadata=(("level", get_text(row, "Level")),),
    )


def parse_hle(row: TableRow, counts: Counter[str]) -> Task:
    """Parse {id, question, answer, answer_type, image | has_image, canary}."""
    if row.get("image") or row.get("has_image"):
        raise SkipRow("it needs its image")
    metadata = tuple((name, str(row[name])) for name in ("category", "canary") if row.get(name))
    return Task(
        get_text(row, "id"),
        get_text(row, "question"),
        (get_text(row, "answer"),),
        "choice" if row.get("answer_type") == "multipleChoice" else "free",
        restricted=True,
        metadata=metadata,
    )


def parse_xbench(row: TableRow, counts: Counter[str]) -> Task:
    """Parse {question, answer} in plain text, or the published {prompt, answer, canary}."""
    question = decrypt_xbench(row, "question", "prompt")
    encrypted = bool(row.get("canary"))
    answers = (decrypt_xbench(row, "answer"),) if encrypted else accepted_answers(row)
    return Task(get_id(row, question), question, answers, "free", "zh", restricted=True)


def _detect_language(text: str, stated: object) -> str:
    """Return the stated language, else guess by the script: 58 rows of WebWalker state none."""
    return str(stated) if stated else "zh" if _CHINESE.search(text) else "en"


def _make_benchmark(name: str, parse: ParseRow, score: Scorer, instructions: str = "") -> Benchmark:
    return Benchmark(
        name=name,
        load=TableLoad(EVALUATED[name], parse, DEEP_SEARCH_ROWS),
        score=score,
        training_score=score_f1,
        train_source="ARPO's hard_search_1k; its last 100 rows are validation",
        max_tool_calls=6,
        max_response_tokens=10_000,
        revision=EVALUATED[name].hub.revision[:12],
        instructions=instructions,
    )


WEBWALKER = replace(
    _make_benchmark("WebWalker", parse_webwalker, score_exact),
    tools=("search", "browse", "python"),  # the answers are on pages below a site's start page
)
GAIA = _make_benchmark("GAIA", parse_gaia, score_gaia, GAIA_FORMAT)
HLE = _make_benchmark("HLE", parse_hle, score_choice)
XBENCH = _make_benchmark("xbench-DeepSearch", parse_xbench, score_exact)
