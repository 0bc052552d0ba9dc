"""WebWalker, GAIA, HLE and xbench-DeepSearch: questions for the open web."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from benchmarks.benchmark import Benchmark, Scorer, Task
from benchmarks.catalog import EVALUATED, xbench_text
from benchmarks.loading import DEEP_SEARCH_ROWS, LeftOut, RowToTask, TableLoad
from benchmarks.multihop_qa import accepted
from benchmarks.scoring import score_choice, score_exact, score_f1, score_gaia
from benchmarks.sources import Row, question_id, text_field

_CHINESE = re.compile("[\u4e00-\u9fff]")


GAIA_FORMAT = (
    "The answer is a number, as few words as possible, or a comma separated list of these. Write a "
    "number in digits, without thousands separators and without units such as $ or % unless the "
    "question asks for them. Write words without articles and abbreviations."
)


def _language(text: str, stated: object = None) -> str:
    """As stated, else by the script: 58 rows of WebWalker state nothing."""
    return str(stated) if stated else "zh" if _CHINESE.search(text) else "en"


def webwalker_task(row: Row, counts: Counter[str]) -> Task:
    """{question, answer, root_url, info}."""
    question = text_field(row, "question")
    info = row.get("info")
    info = info if isinstance(info, Mapping) else {}
    kept = {
        name: str(info[name]) for name in ("type", "difficulty_level", "domain") if name in info
    }
    if row.get("root_url"):
        kept["root_url"] = str(row["root_url"])
    return Task(
        question_id(question),
        question,
        accepted(row),
        "free",
        _language(question, info.get("lang")),
        metadata=tuple(kept.items()),
    )


def gaia_task(row: Row, counts: Counter[str]) -> Task:
    """{task_id, Question, Final answer | answer, Level, file_path}."""
    answer = text_field(row, "Final answer", "answer")
    if answer == "?":
        raise LeftOut("its answer is withheld")
    file = str(row.get("file_path") or row.get("file_name") or "")  # relative to the set's folder
    question = text_field(row, "Question", "question")
    if file:
        question += f"\n\nThe attached file is in Python's folder: {Path(file).name}"
    return Task(
        text_field(row, "task_id"),
        question,
        (answer,),
        attachments=(file,) if file else (),
        restricted=True,
        metadata=(("level", text_field(row, "Level")),),
    )


def hle_task(row: Row, counts: Counter[str]) -> Task:
    """{id, question, answer, answer_type, image | has_image, canary}."""
    if row.get("image") or row.get("has_image"):
        raise LeftOut("it needs its image")
    kept = tuple((name, str(row[name])) for name in ("category", "canary") if row.get(name))
    return Task(
        text_field(row, "id"),
        text_field(row, "question"),
        (text_field(row, "answer"),),
        "choice" if row.get("answer_type") == "multipleChoice" else "free",
        restricted=True,
        metadata=kept,
    )


def xbench_task(row: Row, counts: Counter[str]) -> Task:
    """{question, answer} in plain text, or {prompt, answer, canary} as published, encrypted."""
    question = xbench_text(row, "question", "prompt")
    answers = (xbench_text(row, "answer"),) if row.get("canary") else accepted(row)
    own = row.get("id")
    return Task(
        question_id(question) if own is None else str(own),
        question,
        answers,
        "free",
        "zh",
        restricted=True,
    )


def _benchmark(name: str, to_task: RowToTask, score: Scorer, instructions: str = "") -> Benchmark:
    return Benchmark(
        name=name,
        load=TableLoad(EVALUATED[name], to_task, DEEP_SEARCH_ROWS),
        score=score,
        training_score=score_f1,
        train_source="ARPO's hard_search_1k; its last 100 rows are validation",
        max_tool_calls=6,
        max_response_tokens=10_000,
        revision=EVALUATED[name].hub.revision[:12],
        instructions=instructions,
    )


WEBWALKER = replace(
    _benchmark("WebWalker", webwalker_task, score_exact),
    tools=("search", "browse", "python"),  # its answers lie on pages below a site's first one
)


GAIA = _benchmark("GAIA", gaia_task, score_gaia, GAIA_FORMAT)


HLE = _benchmark("HLE", hle_task, score_choice)


XBENCH = _benchmark("xbench-DeepSearch", xbench_task, score_exact)
