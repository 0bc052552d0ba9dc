"""A GRPO iteration: ours beside TRL's GRPOTrainer with an `environment_factory`.

    python -m tests.perf.trl --trl-python FOLDER/bin/python

TRL has an environment of its own, which holds this repository too:

    python -m venv FOLDER && FOLDER/bin/pip install torch==2.13.0 'trl==1.16.*' -e .

Both train the same small policy, taught once to call tools and to answer, on the same
prompts of SyntheticQA with its search and a calculator, with the same reward, group size, token
limits, optimiser and float32; one optimiser step an iteration, on all rows of it. In TRL the tools
are methods of an environment around `ToolEnv`, a template renders their results as the tags that
the policy knows, and its closing tags are end tokens, so that both sample the same language. TRL
reads every prefix again after a tool call and pads its batches; ours additionally scores the old
log-probabilities in a pass of its own and leaves out rows without credit, which the table counts.
Each side is a process of its own, in turn, round after round; its first iteration warms up. The
target: ahead by 1.5 in episodes per second. A script, not a test: times are never asserted.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from envs import ToolEnv
from learners import grpo
from learners.runs.session import run_iteration
from learners.runs.task_order import select_tasks
from tests.perf.clocks import CLOCKS, measuring_parser, ratio, spread
from tests.perf.iteration import TOOLS, environment, session

TARGET = 1.5
COLUMNS = ("seconds", "tokens", "calls", "rows", "read")
"""Of an iteration: sampled tokens, tool calls, rows trained on, tokens that a model read."""
TEMPLATE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|user|>{{ m['content'] }}"
    "{% elif m['role'] == 'assistant' %}<|assistant|>{{ m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}<{{ c['function']['name'] }}> "
    "{{ c['function']['arguments'] | tojson }}</{{ c['function']['name'] }}>{% endfor %}"
    "{% elif m['role'] == 'tool' %}{{ m['content'] }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] == 'user' %}<|assistant|>{% endif %}"
)
"""What the tiny model knows, with calls and results, which stand in the same message."""
RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": ["<|assistant|>", "</result>"],
    "fields": {
        "tool_calls": {
            "open_pattern": r"<(?P<name>search|calculator)>",
            "close_pattern": r"</(?:search|calculator)>",
            "repeats": True,
            "content": "text",
            "transform": {
                "type": "function",
                "function": {"name": "{name}", "arguments": {"argument": "{content}"}},
            },
        },
        "content": {"close_pattern": r"<\|end\|>", "content": "text"},
    },
}
"""Where TRL finds the calls in what the policy wrote."""


class Counted:
    """What iterations took and sampled."""

    def __init__(self, clock: str) -> None:
        self.clock = CLOCKS[clock]
        self.begun = self.clock()
        self.calls = 0
        """Of tools in this iteration, where nobody else counts them."""
        self.read = 0
        """Tokens that went through a model in this iteration, padding included."""
        self.found: dict[str, list[float]] = {name: [] for name in COLUMNS}

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Counts what is embedded, whatever it is read for."""
        embed = torch.nn.Embedding.forward

        def counting(layer: torch.nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            self.read += ids.numel()
            return embed(layer, ids)

        with patch.object(torch.nn.Embedding, "forward", counting):
            yield

    def ended(self, tokens: float, calls: float, rows: float) -> None:
        values = (self.clock() - self.begun, tokens, calls, rows, self.read)
        for name, value in zip(COLUMNS, values, strict=True):
            self.found[name].append(value)
        self.begun, self.read = self.clock(), 0


def configuration(given: argparse.Namespace) -> grpo.Config:
    return grpo.Config.at("laptop").override(
        prompts=given.prompts,
        minibatch_prompts=given.prompts,
        rollouts=given.rollouts,
        max_response_tokens=given.tokens,
        learning_rate=1e-6,
        seed=given.seed,
    )


def ours(given: argparse.Namespace) -> Counted:
    one = session(Path(given.policy), given.policy, configuration(given), environment())
    counted = Counted(given.clock)
    for number in range(given.iterations + 1):
        one.iteration = number
        with counted.reading():
            found = run_iteration(one, grpo.iteration)
        trained = sum(
            t.diagnostics.weights is not None for tree in one.run.trees for t in tree.roots
        )
        calls = found.get("ledger/tool_calls", 0.0)
        counted.ended(found["ledger/sampled_tokens"], calls, trained)
    return counted


class Episode:
    """What TRL drives; its public methods but `reset` are the tools that the policy calls."""

    def __init__(self, env: ToolEnv, counted: Counted) -> None:
        self._first, self._counted = env, counted
        self._env = env.fork()
        self._ended: float | None = None

    def reset(self, task: str, **_: object) -> None:
        self._env, self._ended = self._first.fork(), None
        self._env.reset(options={"task": task})

    def _step(self, turn: str) -> str:
        said, reward, terminated, truncated, _ = self._env.step(turn)
        self._ended = reward if terminated or truncated else None
        return said

    def _call(self, tool: str, argument: str) -> str:
        if self._ended is not None:
            return ""
        self._counted.calls += 1
        return self._step(f"<think> so</think><{tool}> {argument}</{tool}>")

    def _judged(self, last: dict[str, Any]) -> float:
        if self._ended is None and last["role"] == "assistant":
            self._step(last["content"])
        return self._env.truncate("length", "")[1] if self._ended is None else self._ended

    def search(self, argument: str) -> str:
        """Search.

        Args:
            argument: what to look for.
        """
        return self._call("search", argument)

    def calculator(self, argument: str) -> str:
        """Calculate.

        Args:
            argument: an expression.
        """
        return self._call("calculator", argument)


def reward(completions: list[Any], environments: list[Episode], **_: object) -> list[float]:
    scored = zip(completions, environments, strict=True)
    return [one._judged(said[-1]) for said, one in scored]


def trl_configuration(given: argparse.Namespace, most_calls: int) -> Any:
    from trl import GRPOConfig

    return GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        per_device_train_batch_size=given.prompts * given.rollouts,
        num_generations=given.rollouts,
        max_completion_length=given.tokens,
        max_tool_calling_iterations=most_calls,
        max_steps=given.iterations + 1,
        learning_rate=1e-6,
        loss_type="grpo",
        lr_scheduler_type="constant",
        temperature=1.0,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        shuffle_dataset=False,
        seed=given.seed,
    )


def trl(given: argparse.Namespace) -> Counted:
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOTrainer

    env, counted = environment(), Counted(given.clock)

    class Watch(TrainerCallback):
        def on_step_end(self, *_: object, **__: object) -> None:
            lengths = trainer._metrics["train"]["completions/mean_length"]
            rows = given.prompts * given.rollouts
            counted.ended(lengths[-1] * rows, counted.calls, rows)
            counted.calls = 0

    tokenizer = AutoTokenizer.from_pretrained(given.policy)
    tokenizer.chat_template, tokenizer.response_template = TEMPLATE, RESPONSE
    model = AutoModelForCausalLM.from_pretrained(given.policy, dtype=torch.float32)
    ends = [tokenizer.eos_token, *(f"</{name}>" for name in (*TOOLS, "answer"))]
    model.generation_config.eos_token_id = tokenizer.convert_tokens_to_ids(ends)
    data = [
        {"prompt": [{"role": "user", "content": task.question}], "task": task.id}
        for number in range(given.iterations + 1)
        for task in select_tasks(configuration(given), env.tasks, number)
    ]
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=trl_configuration(given, env.max_tool_calls),
        train_dataset=Dataset.from_list(data),
        processing_class=tokenizer,
        environment_factory=lambda: Episode(env, counted),
        callbacks=[Watch()],
    )
    counted.begun = counted.clock()
    with counted.reading():
        trainer.train()
    return counted


SIDES = {"ours": ours, "trl": trl}


def measured(given: argparse.Namespace, side: str, policy: Path) -> dict[str, list[float]]:
    """What a process of a side found, its first iteration left out."""
    python = sys.executable if side == "ours" else given.trl_python
    names = ("prompts", "rollouts", "tokens", "iterations", "threads", "clock", "seed")
    options = [f"--{name}={getattr(given, name)}" for name in names]
    quiet = os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false"}
    ran = subprocess.run(
        [python, "-m", "tests.perf.trl", "--side", side, "--policy", str(policy), *options],
        capture_output=True,
        text=True,
        env=quiet,
    )
    if ran.returncode:
        raise SystemExit(f"{side} failed:\n{ran.stderr[-3000:]}")
    found: dict[str, list[float]] = json.loads(ran.stdout.splitlines()[-1])
    return {name: values[1:] for name, values in found.items()}


def main() -> None:
    parser = measuring_parser(__doc__, rounds=3)
    parser.add_argument("--trl-python", help="of an environment that has TRL")
    parser.add_argument("--prompts", type=int, default=4, help="of an iteration")
    parser.add_argument("--rollouts", type=int, default=8, help="of a prompt")
    parser.add_argument("--tokens", type=int, default=256, help="of a response, at most")
    parser.add_argument("--iterations", type=int, default=4, help="of a round, one more warms up")
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--policy", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    if given.side is not None:
        print(json.dumps(SIDES[given.side](given).found))
        return
    if given.trl_python is None:
        print("left out: --trl-python names no environment with TRL; see the script's first lines")
        return
    from tests.learner_fakes import teach

    all_found: dict[str, dict[str, list[float]]] = {side: {} for side in SIDES}
    with tempfile.TemporaryDirectory() as folder:
        teach(Path(folder))
        for _ in range(given.rounds):
            for side, kept in all_found.items():
                for name, values in measured(given, side, Path(folder)).items():
                    kept.setdefault(name, []).extend(values)
    report(given, all_found)


def report(given: argparse.Namespace, found: dict[str, dict[str, list[float]]]) -> None:
    episodes = given.prompts * given.rollouts
    print(f"{episodes} episodes an iteration, {given.threads} threads, {given.clock} time; medians")
    print(
        f"{'':6}{'episodes/s':>12}{'spread':>14}{'seconds':>9}{'tokens':>8}{'calls':>7}{'rows':>6}"
        f"{'read':>7}"
    )
    rates = {side: [episodes / s for s in kept["seconds"]] for side, kept in found.items()}
    for side, kept in found.items():
        middle = {name: statistics.median(values) for name, values in kept.items()}
        print(
            f"{side:6}{statistics.median(rates[side]):12.2f}{spread(rates[side], 2):>14}"
            f"{middle['seconds']:9.3f}{middle['tokens']:8.0f}{middle['calls']:7.0f}"
            f"{middle['rows']:6.0f}{middle['read']:7.0f}"
        )
    read = ratio(found["trl"]["read"], found["ours"]["read"])
    print(f"ours over TRL: {ratio(rates['ours'], rates['trl'])}; target {TARGET}")
    print(f"tokens that TRL's model reads over those that ours does: {read}")


if __name__ == "__main__":
    main()
