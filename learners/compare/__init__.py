"""Compares methods at equal budget, with intervals.

__main__   the command
config     its options and the table of methods
plan       trials, their commands and paths
jobs       runs trials as child processes
estimate   estimates time and cost
summary    summaries of trials
collect    summaries that can be compared
bootstrap  intervals over seeds and tasks
report     numbers of the report
tables     the report as Markdown
figures    the report as figures
"""

from __future__ import annotations

from learners.compare.collect import collect
from learners.compare.config import Config, parse_budget, parse_methods, read_spec
from learners.compare.figures import draw_pass_at_k, draw_rewards
from learners.compare.jobs import TASKS_FILE
from learners.compare.report import RewardHistory, build_report, read_report, reward_kind
from learners.compare.summary import read_summary
from learners.compare.tables import format_report, format_table, pass_at_table

__all__ = [
    "TASKS_FILE",
    "Config",
    "RewardHistory",
    "build_report",
    "collect",
    "draw_pass_at_k",
    "draw_rewards",
    "format_report",
    "format_table",
    "parse_budget",
    "parse_methods",
    "pass_at_table",
    "read_report",
    "read_spec",
    "read_summary",
    "reward_kind",
]
