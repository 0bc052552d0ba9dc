"""Figures of runs: uncertain tokens, words, rewards, pass@k.

__main__  the command
tokens    where uncertain and consequential tokens are
"""
