"""Compares methods at equal budget, with intervals.

__main__   the command
config     its options and the table of methods
plan       trials, their commands and folders
jobs       runs trials as child processes
estimate   predicts time and cost
summary    summaries of trials
bootstrap  intervals over seeds and tasks
report     statistics of all summaries
tables     the report as Markdown
figures    the report as figures
"""

from __future__ import annotations

from learners.compare.config import METHODS, Config, parse_budget, parse_methods, read_spec
from learners.compare.figures import drawn_pass_at_k, drawn_rewards
from learners.compare.jobs import TASKS
from learners.compare.report import build_report, collect, told_rewards
from learners.compare.summary import read_summary
from learners.compare.tables import markdown, pass_at, table

__all__ = [
    "METHODS",
    "TASKS",
    "Config",
    "build_report",
    "collect",
    "drawn_pass_at_k",
    "drawn_rewards",
    "markdown",
    "parse_budget",
    "parse_methods",
    "pass_at",
    "read_spec",
    "read_summary",
    "table",
    "told_rewards",
]
