"""Writes docs/benchmarks.md: the prompt, the tools and the limits of every environment.

`python -m scripts.benchmarks_page docs/benchmarks.md` makes it; a test compares it with the code.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks import BENCHMARKS, EVALUATED
from envs import ToolEnv
from learners.evaluate import SCORERS

HEAD = """\
# Prompts and limits

Written by `python -m scripts.benchmarks_page docs/benchmarks.md`; a change here moves an id's
version (`tests/envs/test_specs.py`).

Tokens count what an episode samples and what its tools answer; calls are tool calls of any kind.
Beside the published settings:

| source | tokens | calls | results of a search |
|---|---|---|---|
| APPO, paper | 4,096 per interaction, 8,192 with search | not stated | 10 |
| APPO, training code, reasoning | 6,144 | 3 | 10 of 1,000 characters |
| APPO, training code, deep search | 10,000 | 6 | 10 of 1,000 characters |
| ARPO, training code, reasoning | 4,096 | 6 | 10 |
| ARPO and APPO, evaluation code | 4,096 per generation | 5 of Python, 10 of search | 10 |

An evaluation may use other limits (`--max-response-tokens`, `--max-tool-calls`); results.json says
which.

| id | official score | training score | tools | calls | tokens | results of a search |
|---|---|---|---|---|---|---|
"""

ROWS = """
## Rows

The public data set each id reads without `--data-dir`, at this revision.

| id | data set | split | revision |
|---|---|---|---|
"""

PROMPTS = """
## System prompts

Made from the tools at hand (`envs.tags.instructions`) and what a benchmark's scorer asks for. The
user's message is the question alone.
"""


def build_page() -> str:
    """Write the whole page."""
    envs = {name: ToolEnv(name) for name in BENCHMARKS}
    prompts: dict[str, list[str]] = {}
    for name, env in envs.items():
        prompts.setdefault(env.instructions, []).append(name)
    parts = [HEAD, *(_limits_row(env) for env in envs.values()), ROWS]
    parts += [_source_row(name) for name in EVALUATED]
    parts.append(PROMPTS)
    for text, names in prompts.items():
        parts.append(f"\n### {', '.join(names)}\n\n```text\n{text}\n```\n")
    return "".join(parts)


def _limits_row(env: ToolEnv) -> str:
    record = env.benchmark
    metrics = [SCORERS[scorer.__name__] for scorer in (record.score, record.training_score)]
    results = str(record.search_results) if "search" in record.tools else "-"
    limits = [f"{env.max_tool_calls}", f"{record.max_response_tokens:,}", results]
    return _table_row([f"appo/{record.name}-v0", *metrics, ", ".join(record.tools), *limits])


def _source_row(name: str) -> str:
    table = EVALUATED[name].hub
    file = "" if table.data_files is None else f", {table.data_files}"
    revision = table.revision if len(table.revision) == 40 else f"{table.revision} (not pinned)"
    return _table_row([f"appo/{name}-v0", f"{table.path}{file}", table.split, f"`{revision}`"])


def _table_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


def main(arguments: Sequence[str]) -> None:
    """Write the page to a file, or to the standard output."""
    if arguments:
        Path(arguments[0]).write_text(build_page(), "utf-8")
    else:
        sys.stdout.write(build_page())


if __name__ == "__main__":
    main(sys.argv[1:])
