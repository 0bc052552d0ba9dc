"""Summaries of a comparison, written by hand as if its trials had been run."""

import json

from learners.compare.config import Config
from learners.compare.plan import final_trials, start_trials
from learners.compare.summary import VERSION

TASKS = {
    "test": {"ids": ["a", "b", "c", "d"], "levels": ["1", "1", "2", "2"]},
    "validation": {"ids": ["x", "y"], "levels": ["1", "2"]},
}
RIGHT = {"start": "0000", "grpo": "1100", "appo": "2222", "arpo": "1101"}
"""Of two samples of each task, whatever the seed."""
CURVES = {"grpo": ("00", "10"), "appo": ("10", "11"), "arpo": ("00", "10")}


def config_in(folder):
    """Three methods and two seeds, to 100 tokens."""
    return Config(
        name="lab",
        methods=("grpo", "appo", "arpo"),
        seeds=2,
        budget="tokens=100",
        samples=2,
        results=str(folder / "results"),
        out=str(folder / "runs"),
    )


def written(trial, right=None, weights="w0", curve=None):
    """Summarise a trial as if it had been run: two points of a curve, at 50 and 100 tokens."""
    label = trial.method.label
    right = right or RIGHT[label]
    judged = {"samples": 2, "scores": right, "right": right, "tool_calls": 2.0, "tokens": 30.0}
    spent = {"iterations": 2, "tokens": 100, "flops": 1e9, "calls": 7, "seconds": 3.0}
    spent |= {"reused": 20, "trained": 60, "inherited": 3, "cost": 0.0, "lost": 0}
    summary = {
        "version": VERSION,
        "weights": weights,
        "made": {"commit": "abc", "processor": "one", "jobs": 1},
        "spent": spent,
        "test": judged,
    }
    if label == "start":
        summary["validation"] = {"samples": 1, "scores": "00"}
    else:
        heights = curve or CURVES[label]
        summary |= {
            "rewards": [0.1, 0.2],
            "tokens": [50, 50],
            "metrics": {"reward/mean": 0.15, "response/sampled_tokens": 30.0},
            "curve": [
                {"iterations": i + 1, "tokens": 50 * (i + 1), "scores": scores}
                for i, scores in enumerate(heights)
            ],
        }
    trial.summary.parent.mkdir(parents=True, exist_ok=True)
    trial.summary.write_text(json.dumps(summary))


def all_written(config, **options):
    for trial in [*start_trials(config), *final_trials(config, {})]:
        written(trial, **options)


def edited(trial, change):
    summary = json.loads(trial.summary.read_text())
    change(summary)
    trial.summary.write_text(json.dumps(summary))
