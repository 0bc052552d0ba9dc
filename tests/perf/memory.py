"""What an update takes of memory and time: plain, and with each switch that trades one for other.

    python -m tests.perf.memory --model smollm2 --threads 2

One prompt, some roots, branches of every root, as in `tests.perf.update`, read as a tree or padded.
Every way is a process of its own, all in turn, round after round: a peak is of nobody else's
making. In each a first update makes the optimiser's state, and what its forward passes keep for
their backward passes is counted; the peak is the process's resident set while the next updates run,
Python and its libraries included, the seconds are those of the median one. Ratios are of one round
each, and the median one counts. A script, not a test: nothing is asserted.
"""

import argparse
import importlib.util
import io
import json
import statistics
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, get_args

import torch

from learners.config import OptimizerName
from learners.policy import lora
from learners.policy.activations import SavedTensors
from learners.policy.loading import load_model
from learners.policy.policy import Policy
from learners.runs.memory import ProcessMeter, iter_tensors, tensor_bytes
from tests.learner_fakes import likelihood
from tests.perf.clocks import in_turn, measuring_parser, ratio, seconds_of
from tests.perf.update import add_tree_arguments, tree_rows

PLAIN, LORA = "plain", "lora-rank 8"
WAYS: dict[str, dict[str, Any]] = {
    PLAIN: {},
    "gradient-checkpointing": {"gradient_checkpointing": True},
    "autocast": {"autocast": True},
    **{
        f"optimizer {name}": {"optimizer_name": name}
        for name in get_args(OptimizerName)
        if name != Policy.optimizer_name
    },
    LORA: {},
}
"""By the switch of a run: what `Policy` is given."""
READ = {"tree": "auto", "padded": "never"}
MIB = 2**20


@dataclass(frozen=True)
class Measured:
    """One way in one round."""

    peak: int
    """Bytes, resident."""
    kept: int
    """Bytes, for the backward pass."""
    state: int
    """Bytes, of the optimiser."""
    seconds: float
    """Of an update."""
    tokens: int
    """That an update computed."""


def measured(way: str, given: argparse.Namespace) -> Measured:
    """A way, in this process."""
    torch.set_num_threads(given.threads)
    with redirect_stderr(io.StringIO()):  # a bar of progress
        loaded = load_model(given.model)
    if way == LORA:
        lora.add_adapters(loaded.model, 8, None, given.seed)
    options = {"microbatch_tokens": given.microbatch_tokens, "packs": READ[given.rows]}
    policy = Policy(loaded, learning_rate=0.0, **options, **WAYS[way])
    rows = tree_rows(given, loaded.model.config.vocab_size)
    weights = [torch.full((len(row.trajectory),), 1 / len(rows)) for row in rows]
    update = partial(policy.update, rows, weights, likelihood)
    kept = policy.saved_tensors = SavedTensors()
    update()
    policy.saved_tensors = None
    meter = ProcessMeter()
    meter.reset()
    seconds = [seconds_of(update, given.clock) for _ in range(given.updates)]
    return Measured(
        peak=meter.peak(),
        kept=kept.bytes,
        state=tensor_bytes(iter_tensors(policy.optimizer.state_dict())),
        seconds=statistics.median(seconds),
        tokens=policy.work.computed_tokens,
    )


def apart(way: str) -> Measured:
    """A way, in a process of its own that gets the same command line."""
    command = [sys.executable, "-m", "tests.perf.memory", *sys.argv[1:], f"--way={way}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Measured(**json.loads(done.stdout))


def table(found: dict[str, list[Measured]]) -> None:
    plain = found[PLAIN]
    print(
        f"{'':26}{'peak MiB':>9}{'over plain':>19}{'kept':>7}{'state':>7}{'seconds':>9}  over plain"
    )
    for way, each in found.items():
        peaks, seconds = ([getattr(one, of) for one in each] for of in ("peak", "seconds"))
        memory = ratio(peaks, [one.peak for one in plain])
        time = ratio(seconds, [one.seconds for one in plain])
        kept, state = each[0].kept / MIB, each[0].state / MIB
        print(
            f"{way:26}{statistics.median(peaks) / MIB:9.0f}{memory:>19}{kept:7.0f}{state:7.0f}"
            f"{statistics.median(seconds):9.3f}  {time}"
        )


def main() -> None:
    parser = measuring_parser(__doc__, rounds=3)
    add_tree_arguments(parser)
    parser.add_argument("--rows", choices=READ, default="tree", help="how they are read")
    parser.add_argument("--updates", type=int, default=3, help="of each way in a round")
    parser.add_argument("--without", nargs="*", default=[], help="ways but plain, as in the table")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.way is not None:
        print(json.dumps(asdict(measured(given.way, given))))
        return
    if importlib.util.find_spec("peft") is None:
        print(f"peft is not installed here: without {LORA}")
        given.without.append(LORA)
    ways = {way: partial(apart, way) for way in WAYS if way not in given.without}
    found = in_turn(ways, given.rounds, warm_up=False)
    print(
        f"{given.model}, float32 weights, {given.threads} threads, {given.clock} time: "
        f"{found[PLAIN][0].tokens} tokens an update, rows read as {given.rows}"
    )
    table(found)


if __name__ == "__main__":
    main()
