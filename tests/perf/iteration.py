"""Where the time of an APPO iteration goes: sampling, scoring, updating, tools, the rest.

    python -m tests.perf.iteration

A tiny model that knows the tags plays SyntheticQA with its search and a calculator. The target:
sampling and the policy's passes (scoring and update) take at least 90 % of what is not spent in
tools; what is left is bookkeeping. A script, not a test: times are printed and never asserted.
"""

import argparse
import tempfile
from collections import Counter
from pathlib import Path

import gymnasium as gym
import torch

import envs  # noqa: F401 - registers the environments
from learners import appo
from learners.loop import Run
from learners.models import load_model
from learners.policy import Policy
from learners.rollout import Rollouts
from learners.sampler import TransformersSampler
from learners.session import Session, record, run_iteration
from tests.learner_fakes import teach

TARGET = 0.9
PHASES = ("sample", "score", "update", "tools")


def session(folder: Path, model: str) -> Session:
    """At laptop scale; the model is the taught one unless another is given."""
    if model == "taught":
        teach(folder / "model")
        model = str(folder / "model")
    config = appo.Config.at("laptop")
    loaded = load_model(model)
    env = gym.make("appo/SyntheticQA-v0", split="train", tools=("search", "calculator")).unwrapped
    sampler = TransformersSampler(loaded.model, loaded.tokenizer, env.stop_tags)
    rollouts = Rollouts(env, sampler, loaded.tokenizer, config.max_response_tokens)
    run = Run(config, Policy(loaded, learning_rate=1e-4), rollouts)
    return Session(run, folder, env.tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--model", default="taught", help="taught, or what --model of a run takes")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    total: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as folder:
        one = session(Path(folder), arguments.model)
        run_iteration(one, appo.iteration)  # builds the search index, warms up
        for _ in range(arguments.iterations):
            metrics = {"iteration": one.run.iteration, **run_iteration(one, appo.iteration)}
            total.update({name: metrics.get(f"seconds/{name}", 0.0) for name in PHASES})
            total["iteration"] += metrics["seconds/iteration"]
            total["tokens"] += metrics["ledger/sampled_tokens"]
            with one.run.ledger.phase("record"):
                record(one, metrics, last=False)
            total["record"] += one.run.ledger.take()["seconds/record"]
    whole = total["iteration"]
    rest = whole - sum(total[name] for name in PHASES)
    print(f"{arguments.iterations} iterations, {total['tokens']:.0f} tokens sampled")
    print(f"{'':12}{'seconds':>9}{'of all':>9}{'without tools':>15}")
    for name, seconds in [*((n, total[n]) for n in PHASES), ("rest", rest), ("all", whole)]:
        outside = f"{seconds / (whole - total['tools']):15.1%}" if name != "tools" else ""
        print(f"{name:12}{seconds:9.2f}{seconds / whole:9.1%}{outside if name != 'all' else ''}")
    ours = (total["sample"] + total["score"] + total["update"]) / (whole - total["tools"])
    print(f"sampling, scoring and update: {ours:.1%} of what is not tools; target {TARGET:.0%}")
    print(f"beside the iteration: {total['record']:.2f} s for rollouts, metrics and checkpoints")


if __name__ == "__main__":
    main()
