"""Training runs: from a command line to a finished run folder.

training      the command line of every method
session       a run with its model, tasks and folder; resumes from a checkpoint
run           the interface of a method's iteration
trainer       token statistics and updates
recorder      observations that become metrics
environments  environments of a run, mixtures included
task_order    the tasks of each iteration
evaluation    evaluations during training, early stopping and limits
judging       a judge whose requests are counted
checkpoint    checkpoints, written atomically
report        the report at the end of a run
trackers      TensorBoard, trackio and wandb
memory        memory peaks and their causes
"""

from __future__ import annotations

from learners.runs.checkpoint import save_checkpoint
from learners.runs.environments import make_env, make_training_env
from learners.runs.judging import add_judge
from learners.runs.recorder import Recorder
from learners.runs.run import Run
from learners.runs.session import Session, evaluate_once, open_session
from learners.runs.training import main

__all__ = [
    "Recorder",
    "Run",
    "Session",
    "add_judge",
    "evaluate_once",
    "main",
    "make_env",
    "make_training_env",
    "open_session",
    "save_checkpoint",
]
