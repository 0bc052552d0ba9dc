"""Recomputes rewards, scores and advantages of stored trees.

__main__    the command
stored_run  the parts of a run without a model
trees       reads rollout files back into trees
"""
