"""What rollout files cost: the time to write an iteration's trees, beside the iteration's own.

    python -m tests.perf.rollout_files RUN MODEL

RUN is a run's folder, MODEL the folder of a model with its tokenizer. The newest iteration is read
back and written again into a temporary folder, five times; the median counts. The iterations were
timed when the run was made, on a machine that may have been less or more busy.
A script, not a test: times are printed and never asserted.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from learners.policy.loading import load_model
from learners.replay.trees import build_trees
from learners.rollouts.storage import list_iterations, read_rows, rollout_file, write_rollouts
from learners.run_folder import read_metrics

ROUNDS = 5


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("model")
    given = parser.parse_args()
    newest = list_iterations(given.run)[-1]
    trees = build_trees(read_rows(given.run, newest))
    tokenizer = load_model(given.model).tokenizer
    tokens = sum(len(t) for tree in trees for t in tree.trajectories)
    took = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(ROUNDS):
            begun = time.perf_counter()
            write_rollouts(Path(folder), newest, trees, tokenizer)
            took.append(time.perf_counter() - begun)
        size = rollout_file(Path(folder), newest).stat().st_size
    iterations = statistics.median(m["seconds/iteration"] for m in read_metrics(given.run))
    seconds = statistics.median(took)
    print(
        f"{tokens:,} tokens: {seconds:.3f} s to write, {size / tokens:.1f} bytes a token; an "
        f"iteration took {iterations:.1f} s ({seconds / iterations:.1%})"
    )


if __name__ == "__main__":
    main()
