"""Supervised fine-tuning, the cold start.

__main__        the command
config          its options
training        the run: training data, updates, evaluations
transcripts     demonstrations and written transcripts as trajectories
early_stopping  validation loss, patience and the best weights
"""
