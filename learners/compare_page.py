"""docs/results.md: every comparison that has a spec under results/, and what of it was not run.

`python -m learners.compare_page docs/results.md` writes it from the specs and the summaries that
are there. No number in it is typed by hand.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from learners.compare_config import Config, budget, methods, of_spec
from learners.compare_summary import read_summary
from learners.compare_tasks import TASKS

RESULTS = "results"
DISCUSSION = "discussion.md"
TOKENS = "tokens"
"""Folder of figures of a run, beside the report: `learners.figures tokens` and `words` --out."""
METHOD = "learners.compare_page"
HEAD = """\
# Results

Written by `python -m learners.compare_page docs/results.md` from the specs and summaries under
results/. Every comparison is made, and gone on with, by

    python -m learners.compare --spec results/<name>.toml --jobs 2

A run that has its summary is not run again; `--dry-run` says what is missing and how long it takes,
`--report-only` writes the report of what there is.
"""
NOT_HERE = """\
## Not run

The models of the papers, 7B and more on GPUs, were not trained: no number here speaks of them.
The command at their settings, per method:

    python -m learners.appo --scale paper --model Qwen/Qwen2.5-7B-Instruct --env appo/HotpotQA-v0
    python -m learners.arpo --scale paper --model Qwen/Qwen2.5-7B-Instruct --env appo/HotpotQA-v0
"""


def page(results: Path, links: str) -> str:
    """The whole page.

    Args:
        results: folder of the specs and of what they found.
        links: how a reader of the page reaches that folder.

    Raises:
        UsageError: a spec or a summary cannot be read.
    """
    discussion = results / DISCUSSION
    parts = [HEAD, *([discussion.read_text("utf-8")] if discussion.exists() else [])]
    parts += [section(of_spec(spec), results, links) for spec in sorted(results.glob("*.toml"))]
    return "\n".join([*parts, NOT_HERE])


def section(config: Config, results: Path, links: str) -> str:
    """One comparison."""
    import json

    from learners.compare_material import collect
    from learners.compare_report import report
    from learners.compare_tables import markdown

    folder = results / config.name
    tasks = folder / TASKS
    here = Config(**{**vars(config), "results": str(results)})
    if tasks.exists():
        material = collect(here, json.loads(tasks.read_text()))
        if material is not None:
            text = markdown(report(material), figures=f"{links}/{config.name}", depth=2)
            return text + tokens(folder / TOKENS, f"{links}/{config.name}/{TOKENS}")
    level = "" if config.level is None else f", level {config.level}"
    labels = "; ".join(method.label for method in methods(config))
    done = sum(read_summary(path) is not None for path in folder.glob("*-*.json"))
    return (
        f"## {config.name}\n\n**Not run**"
        + (f" but for {done} summaries that compare nothing yet" if done else "")
        + f": {config.env}{level}, {config.seeds} seeds, each to {budget(config)}: {labels}.\n"
    )


def tokens(folder: Path, link: str) -> str:
    """What `learners.figures` tells of the tokens of a run, where that lies beside the report.

    Args:
        folder: of the figures and their tables.
        link: how a reader of the page reaches it.
    """
    if not folder.is_dir():
        return ""
    parts = ["### Where agents hesitate and decide"]
    for figure in sorted(folder.glob("*.png")):
        told = figure.with_suffix(".md")
        parts += [told.read_text("utf-8").rstrip()] if told.exists() else []
        parts.append(f"![{figure.stem}]({link}/{figure.name})")
    return "\n" + "\n\n".join(parts) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the page to the file named, or to the standard output."""
    from learners.command_line import explained

    parser = argparse.ArgumentParser(prog=f"python -m {METHOD}", description=__doc__)
    parser.add_argument("target", nargs="?", type=Path, help="the page; none: to the output")
    arguments = sys.argv[1:] if arguments is None else arguments
    with explained(METHOD, arguments):
        results, target = Path(RESULTS), parser.parse_args(arguments).target
        if target is None:
            sys.stdout.write(page(results, RESULTS))
            return
        links = Path(os.path.relpath(results, target.parent)).as_posix()
        target.write_text(page(results, links), "utf-8")


if __name__ == "__main__":
    main()
