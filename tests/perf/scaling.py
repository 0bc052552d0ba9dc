"""How long an iteration takes on how many GPUs: a model on paper, and what breaks first.

    python -m tests.perf.scaling             tables of docs/scaling.md, and published figures

`tests.perf.scaling_model` is the model, `tests.perf.scaling_calibration` sets it against times that
are measured on this machine.
"""

import argparse
from dataclasses import replace

from tests.perf.scaling_model import A100, H100, LLAMA_8B, QWEN_7B, QWEN_14B, Times, Work, iteration


def row(name: str, times: Times) -> str:
    parts = (times.sample, times.idle, times.score, times.update, times.exchange, times.push)
    return (
        f"| {name} | {times.all:.0f} | "
        + " | ".join(f"{part:.0f}" if part >= 10 else f"{part:.1f}" for part in parts)
        + f" | {times.rows:.0f} | {times.calls:.0f} |"
    )


HEAD = """\
| GPUs | iteration s | sample | of it idle | score | update | exchange | push | rows | calls/s |
|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|"""


def main() -> None:
    """What docs/scaling.md shows."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    work = Work()
    print("7.6B parameters, 128 prompts x 16, H100, tools of 1 s, overlap\n" + HEAD)
    for gpus in (8, 64, 512):
        print(row(str(gpus), iteration(H100, QWEN_7B, work, gpus)))
    appo = replace(work, branches=12)
    print("\nAPPO: 4 initial rollouts, 12 branches in 8 mini-batches\n" + HEAD)
    for gpus in (8, 64, 512):
        print(row(str(gpus), iteration(H100, QWEN_7B, appo, gpus)))
    name = "8 times the prompts, 64"
    print(row(name, iteration(H100, QWEN_7B, replace(appo, prompts=1024), 64)))
    print(row("1 mini-batch, 64", iteration(H100, QWEN_7B, replace(appo, minibatches=1), 64)))
    print("\n64 GPUs, what each part does\n" + HEAD.replace("GPUs", "change", 1))
    for name, changed, lockstep in (
        ("as above", work, False),
        ("lockstep", work, True),
        ("tools of 5 s", replace(work, tool_seconds=5.0), False),
        ("tools of 5 s, lockstep", replace(work, tool_seconds=5.0), True),
        ("half of the tokens shared", replace(work, shared=2.0), False),
        ("8 times the prompts", replace(work, prompts=1024), False),
    ):
        print(row(name, iteration(H100, QWEN_7B, changed, 64, lockstep)))
    print(
        "\ntrajectories per second and GPU\n| prompts | 8 GPUs | 64 | 512 |\n|---|---:|---:|---:|"
    )
    for prompts in (128, 1024, 8192):
        changed = replace(work, prompts=prompts)
        runs = [(gpus, iteration(H100, QWEN_7B, changed, gpus)) for gpus in (8, 64, 512)]
        rates = [changed.trajectories / times.all / gpus for gpus, times in runs]
        print(f"| {prompts} | " + " | ".join(f"{rate:.2f}" for rate in rates) + " |")
    print(f"calls per second with {prompts} prompts on 512 GPUs: {runs[-1][1].calls:.0f}")
    print("\npublished for a step on 8 GPUs; A100 and lockstep assumed where the source is silent")
    for name, model, changed, said in PUBLISHED:
        times = iteration(A100, model, changed, 8, lockstep=True)
        print(f"{name}: {said}; {times.all / 60:.1f} min by the model")


PUBLISHED = (
    ("Tool-Star issue 15: 8B, 128 x 16", LLAMA_8B, Work(tool_seconds=3.0), "about 15 min"),
    ("ARPO: 14B, 128 x 16", QWEN_14B, Work(tool_seconds=3.0), "about 10 min"),
    ("verl issue 1885: 7B, 512 x 4, search", QWEN_7B, Work(512, 4, turns=3), "3.3 min"),
    ("verl issue 1885: 7B, 512 x 5, search", QWEN_7B, Work(512, 5, turns=3), "25 min"),
    ("rllm issue 29: 7B, 128 x 8", QWEN_7B, Work(128, 8), "6.6 min, on A100"),
    ("R-Search issue 2: 7B, 256 x 5", QWEN_7B, Work(256, 5, turns=3), "5 to 9 min"),
)
"""Seconds of a step are the sources'; batch and lengths ours where they do not say."""


if __name__ == "__main__":
    main()
