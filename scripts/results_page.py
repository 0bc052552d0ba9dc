"""Writes docs/results.md: every comparison that has a spec under results/, and what was not run.

`python -m scripts.results_page docs/results.md` makes it from the specs and summaries. No number in
it is typed by hand.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from learners.compare import (
    TASKS_FILE,
    Config,
    build_report,
    collect,
    format_report,
    parse_budget,
    parse_methods,
    read_spec,
    read_summary,
)
from learners.console import report_errors

METHOD = "scripts.results_page"

RESULTS = "results"

DISCUSSION = "discussion.md"

TOKENS = "tokens"
"""Folder of figures next to a report, the --out of `learners.figures tokens` and `words`."""

HEAD = """\
# Results

Written by `python -m scripts.results_page docs/results.md` from the specs and summaries under
results/. Every comparison is made, and gone on with, by

    python -m learners.compare --spec results/<name>.toml --jobs 2

A run that has its summary is not run again; `--dry-run` says what is missing and how long it takes,
`--report-only` writes the report of what there is.
"""

NOT_HERE = """\
## Not run

The models of the papers, 7B and more on GPUs, were not trained: no number here speaks of them.
One process trains, on one GPU that holds the model, its optimiser and an engine; several are not in
this repository, and 7.6 billion parameters with AdamW are 122 GB (`--lora-rank 16` takes a fraction
of that, and is not what the paper did). APPO's Table 1, each method on the rows of mathematics and
questions together, then all thirteen benchmarks; the paper has five evaluations at temperature 0.6:

    for model in Qwen/Qwen2.5-7B-Instruct meta-llama/Llama-3.1-8B-Instruct; do
      for method in grpo reinforce_pp dapo gppo cispo gigpo arpo appo; do
        run=runs/paper-$(basename $model)-$method
        python -m learners.$method --scale paper --model $model --sampler vllm --autocast \\
          --env appo/MATH-v0 appo/HotpotQA-v0 --iterations 208 --out $run
        python -m learners.evaluate --model $run --all --samples 5 --temperature 0.6
      done
    done

Table 2, deep search, 8B for 40 iterations and 14B for 80; a judge grades GAIA, HLE and xbench:

    for method in grpo arpo appo; do
      python -m learners.$method --scale paper --model Qwen/Qwen3-8B --sampler vllm --autocast \\
        --env appo/GAIA-v0 --iterations 40 --search web --out runs/paper-Qwen3-8B-$method
      python -m learners.evaluate --model runs/paper-Qwen3-8B-$method --samples 5 --search web \\
        --env appo/GAIA-v0 appo/WebWalker-v0 appo/HLE-v0 appo/xbench-DeepSearch-v0 \\
        --temperature 0.6 --judge-base URL --judge-model NAME
    done

The starts of the paper are cold-started on 54,000 demonstrations of tool use that are not among the
data here; `learners.sft` makes one from the demonstrations there are.
"""


def build_page(results: Path, links: str) -> str:
    """Write the whole page.

    Args:
        results: folder of the specs and of their summaries.
        links: path of that folder in the links of the page.

    Raises:
        UsageError: a spec or a summary cannot be read.
    """
    discussion = results / DISCUSSION
    parts = [HEAD, *([discussion.read_text("utf-8")] if discussion.exists() else [])]
    specs = sorted(results.glob("*.toml"))
    sections = [build_section(read_spec(spec), results, links) for spec in specs]
    return "\n".join([*parts, *sections, NOT_HERE])


def build_section(config: Config, results: Path, links: str) -> str:
    """Write the section of a comparison: its report, or what it would run."""
    folder = results / config.name
    tasks = folder / TASKS_FILE
    if tasks.exists():
        data = collect(replace(config, results=str(results)), json.loads(tasks.read_text()))
        if data is not None:
            text = format_report(build_report(data), figures=f"{links}/{config.name}", depth=2)
            return text + build_token_section(folder / TOKENS, f"{links}/{config.name}/{TOKENS}")
    level = "" if config.level is None else f", level {config.level}"
    budget = parse_budget(config)
    labels = "; ".join(method.label for method in parse_methods(config))
    done = sum(read_summary(path) is not None for path in folder.glob("*-*.json"))
    return (
        f"## {config.name}\n\n**Not run**"
        + (f" but for {done} summaries that compare nothing yet" if done else "")
        + f": {config.env}{level}, {config.seeds} seeds, each to {budget}: {labels}.\n"
    )


def build_token_section(folder: Path, link: str) -> str:
    """Write the section of figures about tokens; empty if there are none next to the report.

    Args:
        folder: of the figures of `learners.figures` and their tables.
        link: path of that folder in the links of the page.
    """
    if not folder.is_dir():
        return ""
    parts = ["### Where agents hesitate and decide"]
    for figure in sorted(folder.glob("*.png")):
        table = figure.with_suffix(".md")
        parts += [table.read_text("utf-8").rstrip()] if table.exists() else []
        parts.append(f"![{figure.stem}]({link}/{figure.name})")
    return "\n" + "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page to a file, or to the standard output."""
    parser = argparse.ArgumentParser(prog=f"python -m {METHOD}", description=__doc__)
    parser.add_argument("target", nargs="?", type=Path, help="file; none: the standard output")
    arguments = sys.argv[1:] if arguments is None else arguments
    with report_errors(METHOD, arguments):
        results, target = Path(RESULTS), parser.parse_args(arguments).target
        if target is None:
            sys.stdout.write(build_page(results, RESULTS))
            return
        links = Path(os.path.relpath(results, target.parent)).as_posix()
        target.write_text(build_page(results, links), "utf-8")


if __name__ == "__main__":
    main()
