"""Evaluates a model on environments; episodes are stored and can be graded again.

__main__  the command
config    its options and its folder
backends  model backends: local models and endpoints
endpoint  client and backend of OpenAI-compatible endpoints
episodes  stored episodes
grading   verdicts and their summary
results   results.json
tables    results on a terminal
"""

from __future__ import annotations

from learners.evaluate.config import Config, make_environment
from learners.evaluate.tables import SCORERS

__all__ = [
    "SCORERS",
    "Config",
    "make_environment",
]
