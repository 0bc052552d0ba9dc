"""The fields every run has: what is trained on what, for how long, where it is written."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal, Self

from envs import RewardName
from learners.errors import UsageError
from learners.ledger import Budget, StopUnit

Estimator = Literal["k1", "k2", "k3"]


OptimizerName = Literal["adamw", "muon"]


SinkName = Literal["tensorboard", "trackio", "wandb"]


Scale = Literal["paper", "laptop"]


LAPTOP: dict[str, Any] = {
    "prompts": 8,
    "minibatch_prompts": 2,
    "rollouts": 8,
    "initial_rollouts": 2,
    "max_response_tokens": 384,
    "iterations": 30,
}
"""What `--scale laptop` sets instead of the papers' numbers."""


@dataclass(frozen=True)
class RunConfig:
    """Declared once for every method; a method's `Config` adds its own fields."""

    env: str | tuple[str, ...] = "appo/SyntheticQA-v0"
    """Environment id. Training takes its training source, evaluation its test split. Several ids
    train and evaluate on all of them."""
    env_weights: tuple[float, ...] = ()
    """How often each of several environments is drawn, relative to the others; none: equally."""
    model: str = "smollm2"
    """smollm2, tiny, a folder with a model (as learners.sft writes), or a hub id."""
    data_dir: str | None = None
    """Folder of rows instead of the public data sets."""
    out: str | None = None
    """Folder of the run; runs/<method>-<env>-<seed> by default. Run again to resume."""
    seed: int = 0
    """Decides tasks, draws and branches."""
    scale: Scale = "laptop"
    """paper: the papers' batch and lengths; laptop: what two cores can do. Laptop without CUDA."""
    iterations: int = 104
    """Training steps."""
    stop_at: tuple[tuple[StopUnit, float], ...] = ()
    """End after the iteration that reaches this, as in `tokens 200000`: of training, tokens
    sampled, flops of the policy, tool calls or seconds. --iterations bounds it too."""
    prompts: int = 128
    """Tasks per training step. [paper: 128]"""
    minibatch_prompts: int = 16
    """Tasks per optimiser step. [paper: 16]"""
    learning_rate: float | None = None
    """Constant rate; None: 1e-6 at paper scale, on a laptop by the model's size."""
    schedule: Schedule = "constant"
    """Of the learning rate over the run: constant [reference code], linear or cosine, both to 0."""
    warmup: float = 0.0
    """Share of the iterations in which the learning rate rises. [reference code: 0]"""
    lora_rank: int = 0
    """Rank of LoRA adapters on every linear layer; 0: all weights train. Needs the extra `lora`."""
    lora_alpha: int | None = None
    """Adapters count alpha / rank; None: 2."""
    optimizer: OptimizerName | None = None
    """adamw [reference code], or muon on the matrices of the hidden layers; None: adamw, and muon
    where learners.sft trains new weights."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Of AdamW. [reference code]"""
    max_response_tokens: int = 4096
    """Sampled and observed tokens of one trajectory."""
    temperature: float = 1.0
    """Of sampling and of every log-probability."""
    sampler_correction: float | None = None
    """C: a token counts min(C, its probability under the policy over the sampler's), truncated
    importance sampling [verl: 2]; None: 1."""
    kl: float = 0.0
    """beta: of the divergence from the model the run started from, added to the loss. [APPO and its
    rivals: 0; APPO's code: 0.001; GRPO: 0.04]"""
    kl_estimator: Estimator = "k3"
    """k3, k2, or k1, which has the gradient of k2: its own is 0 in the mean. [APPO's code: k3]"""
    reward: RewardName = "task"
    """task, arpo or correctness."""
    level: str | None = None
    """Keep only tasks of this difficulty, where the benchmark has levels."""
    curriculum: float = 0.0
    """Share of the iterations over which harder levels are let in, the easiest first; 0: all levels
    from the start. Only where the benchmark has levels."""
    tools: tuple[str, ...] | None = None
    """Tools of the environment; None: the benchmark's."""
    sandbox: str = "auto"
    """Where Python runs: auto, local or docker."""
    search: Literal["auto", "local", "remote", "web"] = "auto"
    """What the search tool asks; auto: the corpus at hand, else the web."""
    corpus: str | None = None
    """local: an index folder or a JSONL file of passages; remote: the service's URL; web: an engine
    of ddgs."""
    cache: str | None = None
    """File that records what remote, web and browse say."""
    cache_mode: Literal["live", "record", "replay", "frozen"] = "record"
    """replay: answer from the file alone, a miss is an error; frozen: a miss is an empty answer."""
    max_tool_calls: int | None = None
    """Tool calls of one episode; a branch has what its prefix left. None: the benchmark's."""
    run_calls: int | None = None
    """Tool calls of the whole run, evaluations and lost work included; then it stops."""
    run_cost: float | None = None
    """What they may cost together, by the prices."""
    prices: tuple[tuple[str, float], ...] = ()
    """What a call of a tool costs, or a verdict of the judge, as in `search 0.005 judge 0.01`;
    answers from a recording and verdicts that were given before are free."""
    judge_base: str | None = None
    """An OpenAI-compatible endpoint that grades what no rule can, in evaluations and in the reward
    `correctness`; without it: not judged."""
    judge_model: str | None = None
    """The judge's name there."""
    judge_key_variable: str = "JUDGE_API_KEY"
    """Environment variable that holds the judge's key."""
    max_unavailable: float = 0.5
    """Share of an iteration's trees that may lose their tools; beyond it the run stops."""
    eval_tasks: int = 200
    """Held-out test tasks of the evaluation before and after; 0 leaves it out."""
    eval_every: int = 0
    """Iterations between evaluations on validation tasks; their metrics are validation/*; 0: none.
    The model with the best score is kept in best/."""
    validation_tasks: int = 100
    """Tasks of each."""
    patience: int | None = None
    """Stop after so many of them in a row without a better score; None: never."""
    eval_temperature: float = 1.0
    """Sampling temperature of evaluations; 0 is greedy."""
    train_on_test: bool = False
    """Train on the test split; refused without this flag."""
    train_split: Literal["train", "validation", "test"] = "train"
    """Split to train on."""
    microbatch_tokens: int = 8192
    """Most tokens that one forward and backward pass computes, padding included."""
    autocast: bool = False
    """Train and sample in bfloat16 (weights and log-probabilities stay float32): twice as fast."""
    gradient_checkpointing: bool = False
    """Update in less memory and more time: layers compute again what they do not keep."""
    profile_memory: bool = False
    """Say after each iteration where its memory peaked, and what was held there."""
    sampler: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """vllm: its engine in this process; vllm-server: in a process of its own, started again where
    it ends. Both need vLLM."""
    turns: Literal["auto", "lockstep", "overlap"] = "auto"
    """lockstep: all sample, then all call their tools, and a rerun on a CPU is bit-exact; overlap:
    each trajectory waits for its own tool only. auto: overlap with vLLM or CUDA."""
    sampler_rows: int = 128
    """Most trajectories sampled at the same time."""
    threads: int | None = None
    """CPU threads of the model; None: all cores. Part of what makes a rerun bit-exact."""
    log: tuple[SinkName, ...] = ()
    """Where metrics are shown beside metrics.jsonl: tensorboard, trackio, wandb."""
    checkpoint_every: int = 1
    """Iterations between checkpoints; what a kill discards is at most this much."""

    def __post_init__(self) -> None:
        """Refuse more initial rollouts than rollouts, of methods that have both.

        Raises:
            UsageError: there are more.
        """
        given = vars(self)
        rollouts, initial = given.get("rollouts"), given.get("initial_rollouts")
        if rollouts is not None and initial is not None and initial > rollouts:
            raise UsageError(
                f"--initial-rollouts {initial} is more than --rollouts {rollouts}, which counts "
                "them and the branches of a prompt; give at most as many"
            )

    @property
    def has_reference(self) -> bool:
        """Whether the model that the run started from is asked for its log-probabilities."""
        return self.kl != 0

    @classmethod
    def at(cls, scale: Scale) -> Self:
        """The defaults of a scale."""
        if scale == "paper":
            return cls(scale=scale)
        known = {f.name for f in fields(cls)}
        return cls(scale=scale, **{k: v for k, v in LAPTOP.items() if k in known})


Schedule = Literal["constant", "linear", "cosine"]


def paced(config: RunConfig) -> bool:
    """Whether what an iteration computes depends on how many there are."""
    return config.schedule != "constant" or config.warmup > 0 or config.curriculum > 0


def refuse_budget(config: RunConfig) -> None:
    """Nothing if a run can stop where its config says.

    Raises:
        UsageError: an amount is not above 0.
    """
    for unit, amount in config.stop_at:
        if amount <= 0:
            raise UsageError(f"--stop-at {unit} {amount:g}: expected more than 0")


def refuse(config: RunConfig) -> None:
    """Nothing if numbers are such that a run can be made of them.

    Raises:
        UsageError: one is not.
    """
    refuse_budget(config)
    prices = dict(config.prices)
    wrong = (
        (
            config.temperature <= 0,
            f"--temperature {config.temperature:g}: rollouts that are all the same teach nothing, "
            "and log-probabilities are not defined; give more than 0 (--eval-temperature may be 0)",
        ),
        (config.env == (), "--env names no environment"),
        (
            not 0 <= config.warmup < 1 or not 0 <= config.curriculum <= 1,
            f"--warmup {config.warmup:g} and --curriculum {config.curriculum:g} are shares of the "
            "iterations; expected 0 to 1",
        ),
        (config.kl < 0, f"--kl {config.kl:g} is below 0"),
        (config.lora_rank < 0, f"--lora-rank {config.lora_rank} is below 0; 0 trains all weights"),
        (
            config.patience is not None and (config.eval_every == 0 or config.patience < 1),
            f"--patience {config.patience} counts evaluations on validation tasks; give "
            "--eval-every, and a patience of 1 or more",
        ),
        (config.eval_temperature < 0, "--eval-temperature is below 0; 0 is greedy"),
        (
            not 0 <= config.max_unavailable <= 1,
            f"--max-unavailable is {config.max_unavailable:g}; expected a share from 0 to 1",
        ),
        (
            any(price < 0 for price in prices.values()) or len(prices) < len(config.prices),
            f"--prices {config.prices}; expected different tools, each with a price of 0 or more",
        ),
        (
            config.run_cost is not None and not prices,
            f"--run-cost {config.run_cost} needs --prices, as in --prices search 0.005",
        ),
        (
            config.judge_base is not None and config.judge_model is None,
            "--judge-base needs --judge-model, the judge's name there",
        ),
    )
    for is_wrong, told in wrong:
        if is_wrong:
            raise UsageError(told)


def env_ids(config: RunConfig) -> tuple[str, ...]:
    """The environments of a run."""
    return (config.env,) if isinstance(config.env, str) else config.env


def budget(config: RunConfig) -> Budget:
    """What a run may spend."""
    return Budget(config.run_calls, config.run_cost, config.prices)
