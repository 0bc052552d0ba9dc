"""Supervised fine-tuning, the cold start.

__main__        the command
transcripts     demonstrations and transcripts as trajectories
early_stopping  held-out loss and patience
"""
