"""The report of a comparison as Markdown: what was found, what it cost, what was not run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from learners.compare.summary import PHASES

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
"""Tokens and calls of training; a dash where the summaries of an earlier version tell none."""


TIMES = (
    ("policy FLOPs", "flops"),
    ("seconds", "seconds"),
    *((phase, f"{phase}_seconds") for phase in PHASES),
    ("states forked", "forked"),
    ("replayed", "replayed"),
)
"""Time and memory of training: seconds in all, and those of each phase."""


RARE_TIMES = (
    ("peak memory, bytes", "peak_memory"),
    ("verdicts", "verdicts"),
    ("cost", "cost"),
)
"""Shown where there are any; verdicts are the judge's in evaluations, and part of the cost."""


FIGURES = ("curves", "pass_at_k", "cost", "profiles", "rewards")


REWARDS = {
    "first_rewards": "Rewards are of the rollouts that each prompt began with, mean over prompts, "
    "each point of a tenth of the iterations: no rollout or prompt counts that a method added by "
    "what it had sampled. An iteration's prompts are the same for all methods of a seed: hard ones "
    "lower each curve where it comes to them.",
    "rewards": "Rewards are of all initial rollouts, as these summaries tell no others. ARPO and "
    "AEPO begin more of them where earlier ones ended early, and DAPO draws more prompts where "
    "rollouts were equal: reward curves do not compare between methods.",
}
"""What is told under the reward curves, by what they are of."""


MOST_MISSING = 12


OF_ALL = ("advantage/magnitude",)
"""Diagnostics that every run has; `-` tells of summaries that an earlier version made."""


def markdown(report: Mapping[str, Any], figures: str | None = None, depth: int = 1) -> str:
    """The whole report.

    Args:
        report: of `learners.compare.report.report`.
        figures: folder of the figures, as a reader of the text reaches it; None: no figures.
        depth: of the headings.
    """
    head = "#" * depth
    level = "" if report["level"] is None else f", level {report['level']}"
    seeds = ", ".join(map(str, report["seeds"]))
    chosen = report["rates"]
    parts = [
        f"{head} {report['name']}",
        f"{report['env']}{level}; every run ends after the iteration that reaches "
        f"{report['budget']}. Seeds {seeds}; {report['tasks']} test tasks, {report['samples']} "
        f"episodes each; all began with the same weights (`{report['weights']}`), which solve "
        f"{_interval(report['start']['accuracy'])} of them. Brackets: 95 % intervals, bootstrapped "
        "over seeds and tasks at once, tasks within their level, paired between methods. "
        f"{_made(report['made'])}",
        results(report),
        "Mean curve is the mean height of the learning curve on validation tasks up to the budget; "
        "IQM the interquartile mean over seeds and levels.",
        *([f"Learning rates, chosen on validation tasks: {_rates(chosen)}."] if chosen else []),
        f"{head}# Differences to {report['against']}",
        *pairs(report),
        f"{head}# Cost, means of a run",
        costs(report),
        times(report),
        f"{head}# pass@k",
        pass_at(report),
        f"{head}# Levels and diagnostics",
        per_level(report),
        diagnostics(report),
    ]
    if figures is not None:
        shown = [f"![{name.replace('_', ' ')}]({figures}/{name}.png)" for name in FIGURES]
        parts += [f"{head}# Figures", "\n\n".join(shown), REWARDS[report["rewards"]]]
    parts += [f"{head}# Not run", _missing(report["missing"])]
    return "\n\n".join(part for part in parts if part) + "\n"


def results(report: Mapping[str, Any]) -> str:
    """Accuracy, gain, curve and interquartile mean of each method."""
    rows = [
        [
            label,
            _interval(found["accuracy"]),
            _signed(found["gain"]),
            _interval(found["area"]),
            _interval(found["iqm"]),
        ]
        for label, found in report["methods"].items()
    ]
    names = ("method", "final accuracy", "gain over the start", "mean curve", "IQM")
    return table(names, rows)


def pairs(report: Mapping[str, Any]) -> list[str]:
    """Differences, and what may be said about them."""
    if not report["pairs"]:
        return ["There is one method: nothing to compare it with."]
    ours = report["against"]
    rows = [
        [
            pair["theirs"],
            _signed(pair["accuracy"]),
            _signed(pair["area"]),
            _interval(pair["improvement"]),
            "yes" if pair["separated"] else "no",
        ]
        for pair in report["pairs"]
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
    told = "\n".join(f"- {pair['sentence']}" for pair in report["pairs"])
    rule = f"Separated: the interval of accuracy at {widened} leaves out 0" + (
        f", widened because there are {count} comparisons." if count > 1 else "."
    )
    return [table(names, rows), rule, told]


def costs(report: Mapping[str, Any]) -> str:
    """Tokens and calls that a run of each method spent in training, and a task in the test."""
    rows = [
        [
            label,
            *(_number(found["spent"].get(name)) for _, name in COSTS),
            f"{found['tokens_per_task']:.1f}",
            f"{found['calls_per_task']:.2f}",
        ]
        for label, found in report["methods"].items()
    ]
    return table(("method", *(c for c, _ in COSTS), "tokens a task", "calls a task"), rows)


def times(report: Mapping[str, Any]) -> str:
    """Time and memory that a run of each method spent in training."""
    every = [found["spent"] for found in report["methods"].values()]
    columns = [*TIMES, *(rare for rare in RARE_TIMES if any(s.get(rare[1]) for s in every))]
    rows = [
        [label, *(_number(found["spent"].get(name)) for _, name in columns)]
        for label, found in report["methods"].items()
    ]
    return table(("method", *(c for c, _ in columns)), rows)


def pass_at(report: Mapping[str, Any]) -> str:
    """pass@k of each method."""
    ks = list(next(iter(report["methods"].values()))["pass_at"])
    rows = [
        [label, *(_interval(found["pass_at"][k]) for k in ks)]
        for label, found in report["methods"].items()
    ]
    return table(("method", *(f"k = {k}" for k in ks)), rows)


def per_level(report: Mapping[str, Any]) -> str:
    """Final accuracy by level and by seed."""
    levels = list(report["levels"])
    rows = [
        [
            label,
            *(f"{found['per_level'][level]:.3f}" for level in levels),
            " ".join(f"{x:.3f}" for x in found["per_seed"]),
        ]
        for label, found in report["methods"].items()
    ]
    names = [f"level {x} ({report['levels'][x]} tasks)" if x else "all" for x in levels]
    return table(("method", *names, "by seed"), rows)


def diagnostics(report: Mapping[str, Any]) -> str:
    """Metrics that tell why; `python -m learners.metrics` says what they mean."""
    names = [n for found in report["methods"].values() for n in found["metrics"]]
    names = list(dict.fromkeys([*names, *OF_ALL]))
    rows = [
        [
            f"`{name}`",
            *(
                f"{found['metrics'][name]:.4g}" if name in found["metrics"] else "-"
                for found in report["methods"].values()
            ),
        ]
        for name in names
    ]
    return table(("mean over a run", *report["methods"]), rows)


def table(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _interval(value: Mapping[str, float]) -> str:
    return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def _signed(value: Mapping[str, float]) -> str:
    return f"{value['value']:+.3f} [{value['low']:+.3f}, {value['high']:+.3f}]"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.1f}" if value < 1e9 else f"{value:.3g}"


def _rates(rates: Mapping[str, float]) -> str:
    return ", ".join(f"{label} {rate:g}" for label, rate in rates.items())


def _made(made: Sequence[Mapping[str, Any]]) -> str:
    told = [f"commit {m['commit']}, {m['processor']}, {m['jobs']} at a time" for m in made]
    return f"Made by {'; '.join(told)}, one thread a run."


def _missing(titles: Sequence[str]) -> str:
    if not titles:
        return "Everything the comparison asks for was run."
    shown = [f"- {title}" for title in titles[:MOST_MISSING]]
    more = len(titles) - MOST_MISSING
    return "\n".join([*shown, *([f"- and {more} more"] if more > 0 else [])])
