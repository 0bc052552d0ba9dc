"""Learners: one module per method, with `Config` and `iteration`. Nobody imports learners."""
