"""Measuring scripts run to their end: each with as little work as it takes, its numbers unread."""

import sys
from importlib import import_module
from pathlib import Path

import pytest
import torch

SMALLEST = {
    "step": "--rounds 1 --calls 1",
    "update": "--rounds 1 --prompt 4 --response 4 --roots 2 --branches 1",
    "branching": "--rounds 1 --trunk 8 --branches 2",
    "overlap": "--rounds 1 --model tiny --episodes 2 --calls 1 --tokens 2 --seconds 0.01",
    "iteration": "--rounds 1 --model tiny --prompts 2 --rollouts 4 --tokens 8",
    "scaling": "",
    "scaling_calibration": "--model tiny --rounds 1",
    "memory": "--way plain --updates 1 --prompt 4 --response 4 --roots 2 --branches 1",
}
"""By script: arguments with which it takes seconds."""
LEFT_OUT = {
    "clocks": "no script",
    "environments": "starts other gyms",
    "rollout_files": "reads a run",
    "sampling": "SmolLM2",
    "sandbox": "takes the kernel's sandbox and Docker",
    "scaling_model": "no script",
    "search": "reads the corpus",
    "search_growth": "reads the corpus",
    "search_recall": "reads the corpus",
    "startup": "a minute of interpreters",
    "trl": "needs TRL",
}
"""By script: why it is not run here."""


@pytest.mark.parametrize("name", SMALLEST)
def test_a_script_runs_to_its_end(name, monkeypatch, capsys):
    threads = torch.get_num_threads()
    monkeypatch.setattr(sys, "argv", [name, *SMALLEST[name].split()])
    try:
        import_module(f"tests.perf.{name}").main()
    finally:
        torch.set_num_threads(threads)
    assert capsys.readouterr().out


def test_every_script_is_run_or_left_out_for_a_reason():
    there = {path.stem for path in (Path(__file__).parent / "perf").glob("*.py")} - {"__init__"}
    assert there == SMALLEST.keys() | LEFT_OUT.keys()
