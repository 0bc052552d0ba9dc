"""The report of a comparison as Markdown: results, costs, and what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from learners.compare.report import Report, RewardKind
from learners.compare.summary import PHASES, Provenance
from learners.intervals import Interval

COSTS = (
    ("iterations", "iterations"),
    ("tokens sampled", "tokens"),
    ("reused", "reused"),
    ("prefilled", "prefilled"),
    ("trained", "trained"),
    ("computed", "computed"),
    ("calls", "calls"),
    ("inherited", "inherited"),
    ("retries", "retries"),
    ("judge calls", "judge_calls"),
)
"""Columns of tokens and calls in training; a dash if summaries of an earlier version lack one."""

TIMES = (
    ("policy FLOPs", "flops"),
    ("seconds", "seconds"),
    *((phase, f"{phase}_seconds") for phase in PHASES),
    ("states forked", "forked"),
    ("replayed", "replayed"),
)
"""Columns of time in training: seconds in total, and those of each phase."""

RARE_TIMES = (
    ("peak memory, bytes", "peak_memory"),
    ("verdicts", "verdicts"),
    ("cost", "cost"),
)
"""Columns that are shown if one is not 0; verdicts are the judge's in evaluations, and part of the
cost."""

FIGURES = ("curves", "pass_at_k", "cost", "profiles", "rewards")

REWARD_NOTES: dict[RewardKind, str] = {
    "first_rewards": "Rewards are of the rollouts that each prompt began with, mean over prompts, "
    "each point of a tenth of the iterations: no rollout or prompt counts that a method added by "
    "what it had sampled. An iteration's prompts are the same for all methods of a seed: hard ones "
    "lower each curve where it comes to them.",
    "rewards": "Rewards are of all initial rollouts, as these summaries tell no others. ARPO and "
    "AEPO begin more of them where earlier ones ended early, and DAPO draws more prompts where "
    "rollouts were equal: reward curves do not compare between methods.",
}
"""Text under the reward curves, by their kind."""

MAX_MISSING = 12
"""Titles that are listed as not run."""

ALWAYS_SHOWN = ("advantage/magnitude",)
"""Diagnostics that every run has; `-` marks summaries of an earlier version."""


def format_report(report: Report, figures: str | None = None, depth: int = 1) -> str:
    """Write the whole report.

    Args:
        report: of a comparison.
        figures: folder of the figures, as a reader of the text reaches it; None: no figures.
        depth: of the headings.
    """
    head = "#" * depth
    level = "" if report.level is None else f", level {report.level}"
    seeds = ", ".join(map(str, report.seeds))
    rates = ", ".join(f"{label} {rate:g}" for label, rate in report.rates.items())
    parts = [
        f"{head} {report.name}",
        f"{report.env}{level}; every run ends after the iteration that reaches "
        f"{report.budget}. Seeds {seeds}; {report.tasks} test tasks, {report.samples} "
        f"episodes each; all began with the same weights (`{report.weights}`), which solve "
        f"{report.start.accuracy} of them. Brackets: 95 % intervals, bootstrapped "
        "over seeds and tasks at once, tasks within their level, paired between methods. "
        f"{_format_provenance(report.made)}",
        results_table(report),
        "Mean curve is the mean height of the learning curve on validation tasks up to the budget; "
        "IQM the interquartile mean over seeds and levels.",
        *([f"Learning rates, chosen on validation tasks: {rates}."] if rates else []),
        f"{head}# Differences to {report.against}",
        *pair_sections(report),
        f"{head}# Cost, means of a run",
        cost_table(report),
        time_table(report),
        f"{head}# pass@k",
        pass_at_table({label: method.pass_at for label, method in report.methods.items()}),
        f"{head}# Levels and diagnostics",
        level_table(report),
        diagnostics_table(report),
    ]
    if figures is not None:
        images = [f"![{name.replace('_', ' ')}]({figures}/{name}.png)" for name in FIGURES]
        parts += [f"{head}# Figures", "\n\n".join(images), REWARD_NOTES[report.rewards]]
    parts += [f"{head}# Not run", _format_missing(report.missing)]
    return "\n\n".join(part for part in parts if part) + "\n"


def results_table(report: Report) -> str:
    """Table of accuracy, gain, curve and interquartile mean of each method."""
    rows = [
        [
            label,
            str(method.accuracy),
            method.gain.signed(),
            str(method.area),
            str(method.iqm),
        ]
        for label, method in report.methods.items()
    ]
    names = ("method", "final accuracy", "gain over the start", "mean curve", "IQM")
    return format_table(names, rows)


def pair_sections(report: Report) -> list[str]:
    """Table of the differences between methods, the rule that separates them, and sentences."""
    if not report.pairs:
        return ["There is one method: nothing to compare it with."]
    ours = report.against
    rows = [
        [
            pair.theirs,
            pair.accuracy.signed(),
            pair.area.signed(),
            str(pair.improvement),
            "yes" if pair.separated else "no",
        ]
        for pair in report.pairs
    ]
    names = (
        "method",
        f"{ours} - method, accuracy",
        "mean curve",
        f"P({ours} above)",
        "separated",
    )
    count = len(rows)
    widened = f"{100 * (1 - 0.05 / count):.4g} %"
    sentences = "\n".join(f"- {pair.sentence}" for pair in report.pairs)
    rule = f"Separated: the interval of accuracy at {widened} leaves out 0" + (
        f", widened because there are {count} comparisons." if count > 1 else "."
    )
    return [format_table(names, rows), rule, sentences]


def cost_table(report: Report) -> str:
    """Table of tokens and calls: of a run in training, and of a task in the test."""
    rows = [
        [
            label,
            *(_format_number(method.spent.get(name)) for _, name in COSTS),
            f"{method.tokens_per_task:.1f}",
            f"{method.calls_per_task:.2f}",
        ]
        for label, method in report.methods.items()
    ]
    return format_table(("method", *(c for c, _ in COSTS), "tokens a task", "calls a task"), rows)


def time_table(report: Report) -> str:
    """Table of time and memory of a run in training."""
    spent = [method.spent for method in report.methods.values()]
    columns = [*TIMES, *(rare for rare in RARE_TIMES if any(s.get(rare[1]) for s in spent))]
    rows = [
        [label, *(_format_number(method.spent.get(name)) for _, name in columns)]
        for label, method in report.methods.items()
    ]
    return format_table(("method", *(c for c, _ in columns)), rows)


def pass_at_table(methods: Mapping[str, Mapping[int, Interval]]) -> str:
    """Table of pass@k, by method and k."""
    ks = list(next(iter(methods.values())))
    rows = [[label, *(str(pass_at[k]) for k in ks)] for label, pass_at in methods.items()]
    return format_table(("method", *(f"k = {k}" for k in ks)), rows)


def level_table(report: Report) -> str:
    """Table of final accuracy by level and by seed."""
    rows = [
        [
            label,
            *(f"{method.per_level[level]:.3f}" for level in report.levels),
            " ".join(f"{x:.3f}" for x in method.per_seed),
        ]
        for label, method in report.methods.items()
    ]
    names = [f"level {x} ({count} tasks)" if x else "all" for x, count in report.levels.items()]
    return format_table(("method", *names, "by seed"), rows)


def diagnostics_table(report: Report) -> str:
    """Table of metrics that explain the results; `python -m learners.metrics` defines them."""
    methods = report.methods.values()
    names = dict.fromkeys([*(n for method in methods for n in method.metrics), *ALWAYS_SHOWN])
    rows = [
        [
            f"`{name}`",
            *(f"{m.metrics[name]:.4g}" if name in m.metrics else "-" for m in methods),
        ]
        for name in names
    ]
    return format_table(("mean over a run", *report.methods), rows)


def format_table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _format_number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if value < 1e9 else f"{value:.3g}"


def _format_provenance(made: Sequence[Provenance]) -> str:
    entries = [f"commit {m['commit']}, {m['processor']}, {m['jobs']} at a time" for m in made]
    return f"Made by {'; '.join(entries)}, one thread a run."


def _format_missing(titles: Sequence[str]) -> str:
    if not titles:
        return "Everything the comparison asks for was run."
    lines = [f"- {title}" for title in titles[:MAX_MISSING]]
    more = len(titles) - MAX_MISSING
    return "\n".join([*lines, *([f"- and {more} more"] if more > 0 else [])])
