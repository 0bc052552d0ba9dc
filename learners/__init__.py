"""Learners: one readable module per method, each with `Config` and `iteration`. Nobody imports learners."""
