"""Training runs: from a command line to a finished run folder.

run           Run, what a method's iteration works with
trainer       token statistics and updates
recorder      observations that become metrics
session       opens a run with its model, tasks and folder
training      the command line of every method
checkpoint    run folders and checkpoints
environments  environments of a run, mixtures included
task_order    which tasks an iteration trains on
evaluation    evaluations before, during and after training
judging       judges whose calls are counted
report        the final report
trackers      TensorBoard, trackio and wandb
memory        memory peaks and their causes
"""

from __future__ import annotations

from learners.runs.checkpoint import save_checkpoint
from learners.runs.environments import environment
from learners.runs.judging import judged
from learners.runs.recorder import Recorder
from learners.runs.run import Run
from learners.runs.session import Session, evaluate_once, open_session, training_env
from learners.runs.training import main

__all__ = [
    "Recorder",
    "Run",
    "Session",
    "environment",
    "evaluate_once",
    "judged",
    "main",
    "open_session",
    "save_checkpoint",
    "training_env",
]
