"""Benchmarks: tasks and how answers to them are scored. Knows nothing of tools, envs or tokens."""

from benchmarks.benchmark import Benchmark, Passage, Score, Scorer, Task

__all__ = ["Benchmark", "Passage", "Score", "Scorer", "Task"]
