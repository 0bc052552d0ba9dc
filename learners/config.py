"""Options of a training run, in groups; a method's `Config` adds its own.

On the command line no option carries its group's name: `optimisation.learning_rate` is
`--learning-rate`. The same flat names stand in config.json.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, Self

from envs import CacheMode, RewardName
from learners.errors import UsageError
from learners.ledger import Budget, StopUnit

Estimator = Literal["k1", "k2", "k3"]
OptimizerName = Literal["adamw", "muon"]
Scale = Literal["paper", "laptop"]
Schedule = Literal["constant", "linear", "cosine"]
TrackerName = Literal["tensorboard", "trackio", "wandb"]

LAPTOP: dict[str, Any] = {
    "prompts": 8,
    "minibatch_prompts": 2,
    "rollouts": 8,
    "initial_rollouts": 2,
    "max_response_tokens": 384,
    "iterations": 30,
}
"""Values that `--scale laptop` puts in place of the papers'."""


@dataclass(frozen=True)
class Training:
    """The run: its model, length and folder."""

    model: str = "smollm2"
    """smollm2, tiny, a model's folder (as learners.sft writes it), or a hub id."""
    out: str | None = None
    """The run's folder; runs/<method>-<env>-<seed> by default. Run the same command to resume."""
    seed: int = 0
    """Seed of task order, sampling and branching."""
    scale: Scale = "laptop"
    """Default sizes: the papers' (paper), or what two cores can do (laptop). Without CUDA, laptop
    is the default."""
    iterations: int = 104
    """Training steps."""
    prompts: int = 128
    """Tasks per training step. [paper: 128]"""
    minibatch_prompts: int = 16
    """Tasks per optimizer step. [paper: 16]"""
    checkpoint_every: int = 1
    """Iterations between checkpoints; a killed run loses at most this many."""
    threads: int | None = None
    """CPU threads of the model; None: all cores. A rerun is bit-exact only with the same number."""
    log: tuple[TrackerName, ...] = ()
    """Trackers that show metrics.jsonl as well: tensorboard, trackio, wandb."""
    profile_memory: bool = False
    """Print after each iteration where its memory peaked and what took it."""


@dataclass(frozen=True)
class Environment:
    """The environments, their rows and their tools."""

    env: str | tuple[str, ...] = "appo/SyntheticQA-v0"
    """Environment id. Training uses its training source, evaluation its test split. Several ids
    train and evaluate on all of them."""
    env_weights: tuple[float, ...] = ()
    """Weights by which several environments are drawn; none: all equally often."""
    data_dir: str | None = None
    """Folder with rows, in place of the public data sets."""
    train_split: Literal["train", "validation", "test"] = "train"
    """Split to train on."""
    train_on_test: bool = False
    """Allow training on the test split, which is refused otherwise."""
    level: str | None = None
    """Keep only tasks of this difficulty, for benchmarks with levels."""
    curriculum: float = 0.0
    """Share of the iterations over which harder levels are added, easiest first; 0: all levels from
    the start. For benchmarks with levels."""
    reward: RewardName = "task"
    """task, arpo or correctness."""
    tools: tuple[str, ...] | None = None
    """The environment's tools; None: the benchmark's."""
    max_tool_calls: int | None = None
    """Tool calls per episode; a branch inherits the calls of its prefix. None: the benchmark's."""
    sandbox: str = "auto"
    """Sandbox of Python: auto, local or docker."""
    search: Literal["auto", "local", "remote", "web"] = "auto"
    """Source of search results; auto: the benchmark's corpus if it has one, else the web."""
    corpus: str | None = None
    """local: an index folder or a JSONL file of passages; remote: the service's URL; web: an engine
    of ddgs."""
    cache: str | None = None
    """File that records the answers of remote, web and browse."""
    cache_mode: CacheMode = "record"
    """replay: answer from the file alone, a miss is an error; frozen: a miss is an empty answer."""

    @property
    def ids(self) -> tuple[str, ...]:
        """Environment ids, one or several."""
        return (self.env,) if isinstance(self.env, str) else self.env

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        _reject_if(
            (self.env == (), "--env names no environment"),
            (
                not 0 <= self.curriculum <= 1,
                f"--curriculum {self.curriculum:g} is a share of the iterations; expected 0 to 1",
            ),
            (
                self.train_split == "test" and not self.train_on_test,
                "--train-split test trains on the rows results are reported on; use train, or add "
                "--train-on-test if that is what you want",
            ),
        )


@dataclass(frozen=True)
class Sampling:
    """Sampling of rollouts."""

    temperature: float = 1.0
    """Temperature of sampling and of all log-probabilities."""
    max_response_tokens: int = 4096
    """Sampled and observed tokens of one trajectory."""
    sampler: Literal["transformers", "vllm", "vllm-server"] = "transformers"
    """vllm: its engine in this process; vllm-server: in a process of its own, restarted if it dies.
    Both need vLLM."""
    turns: Literal["auto", "lockstep", "overlap"] = "auto"
    """lockstep: all trajectories sample, then all call their tools, and a rerun on a CPU is
    bit-exact; overlap: each trajectory waits for its own tool only. auto: overlap with vLLM or
    CUDA."""
    sampler_rows: int = 128
    """Trajectories sampled at the same time, at most."""
    sampler_correction: float | None = None
    """C: a token's loss is multiplied by min(C, policy probability / sampler probability),
    truncated importance sampling [verl: 2]; None: by 1."""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        _reject_if(
            (
                self.temperature <= 0,
                f"--temperature {self.temperature:g}: rollouts that are all the same teach "
                "nothing, and log-probabilities are not defined; give more than 0 "
                "(--eval-temperature may be 0)",
            )
        )


@dataclass(frozen=True)
class Optimisation:
    """Updates of the policy."""

    learning_rate: float | None = None
    """Peak learning rate; None: 1e-6 at paper scale, else by the model's size."""
    schedule: Schedule = "constant"
    """Learning rate over the run: constant [reference code], or linear or cosine decay to 0."""
    warmup: float = 0.0
    """Share of the iterations in which the learning rate rises. [reference code: 0]"""
    optimizer: OptimizerName | None = None
    """adamw [reference code], or muon for the hidden layers' matrices; None: adamw, but muon if
    learners.sft trains new weights."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """AdamW's betas. [reference code]"""
    lora_rank: int = 0
    """Rank of LoRA adapters on every linear layer; 0: train all weights. Needs the extra `lora`."""
    lora_alpha: int | None = None
    """Adapters are scaled by alpha / rank; None: by 2."""
    kl: float = 0.0
    """beta: weight in the loss of the KL divergence from the initial model. [APPO and its rivals:
    0; APPO's code: 0.001; GRPO: 0.04]"""
    kl_estimator: Estimator = "k3"
    """k3, k2, or k1, which uses k2's gradient since its own is 0 on average. [APPO's code: k3]"""
    microbatch_tokens: int = 8192
    """Tokens that one forward and backward pass computes at most, padding included."""
    autocast: bool = False
    """Train and sample in bfloat16 (weights and log-probabilities stay float32): twice as fast."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, more time."""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        _reject_if(
            (
                not 0 <= self.warmup < 1,
                f"--warmup {self.warmup:g} is a share of the iterations; expected 0 to 1",
            ),
            (self.kl < 0, f"--kl {self.kl:g} is below 0"),
            (self.lora_rank < 0, f"--lora-rank {self.lora_rank} is below 0; 0 trains all weights"),
        )


@dataclass(frozen=True)
class Evaluation:
    """Evaluations before, during and after training."""

    eval_tasks: int = 200
    """Test tasks of the evaluations before and after training; 0: no such evaluation."""
    eval_every: int = 0
    """Iterations between evaluations on validation tasks, reported as validation/*; 0: none. The
    model with the best score is saved in best/."""
    validation_tasks: int = 100
    """Tasks of each evaluation during training."""
    patience: int | None = None
    """Stop after this many evaluations in a row without a better score; None: never."""
    eval_temperature: float = 1.0
    """Sampling temperature of evaluations; 0 is greedy."""

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        _reject_if(
            (
                self.patience is not None and (self.eval_every == 0 or self.patience < 1),
                f"--patience {self.patience} counts evaluations on validation tasks; give "
                "--eval-every, and a patience of 1 or more",
            ),
            (self.eval_temperature < 0, "--eval-temperature is below 0; 0 is greedy"),
        )


@dataclass(frozen=True)
class JudgeOptions:
    """The language model that grades free-form answers."""

    judge_base: str | None = None
    """URL of an OpenAI-compatible endpoint that grades answers no rule can grade, in evaluations
    and in the reward `correctness`; None: such answers are not judged."""
    judge_model: str | None = None
    """The judge's name at the endpoint."""
    judge_key_variable: str = "JUDGE_API_KEY"
    """Environment variable that holds the judge's key."""

    def validate(self) -> None:
        """Check option values. Raises UsageError if they do not go together."""
        _reject_if(
            (
                self.judge_base is not None and self.judge_model is None,
                "--judge-base needs --judge-model, the judge's name there",
            )
        )


@dataclass(frozen=True)
class Limits:
    """When the run stops."""

    stop_at: tuple[tuple[StopUnit, float], ...] = ()
    """Stop after the iteration in which training reaches an amount, as in `tokens 200000`: sampled
    tokens, flops of the policy, tool calls or seconds. --iterations still applies."""
    run_calls: int | None = None
    """Tool calls of the whole run, evaluations and discarded work included; the run then stops."""
    run_cost: float | None = None
    """Cost of the whole run by --prices; the run then stops."""
    prices: tuple[tuple[str, float], ...] = ()
    """Price of a tool's call or a judge's verdict, as in `search 0.005 judge 0.01`. Recorded
    answers and repeated verdicts are free."""
    max_unavailable: float = 0.5
    """Share of an iteration's trees that may lose their tools; the run stops beyond it."""

    def budget(self) -> Budget:
        """The calls and costs that a run may spend."""
        return Budget(self.run_calls, self.run_cost, self.prices)

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        prices = dict(self.prices)
        _reject_if(
            *(
                (amount <= 0, f"--stop-at {unit} {amount:g}: expected more than 0")
                for unit, amount in self.stop_at
            ),
            (
                not 0 <= self.max_unavailable <= 1,
                f"--max-unavailable is {self.max_unavailable:g}; expected a share from 0 to 1",
            ),
            (
                any(price < 0 for price in prices.values()) or len(prices) < len(self.prices),
                f"--prices {self.prices}; expected different tools, each with a price of 0 or more",
            ),
            (
                self.run_cost is not None and not prices,
                f"--run-cost {self.run_cost} needs --prices, as in --prices search 0.005",
            ),
        )


@dataclass(frozen=True)
class RunConfig:
    """The groups of options that every method has; a method's `Config` adds its own fields."""

    training: Training = field(default_factory=Training)
    environment: Environment = field(default_factory=Environment)
    sampling: Sampling = field(default_factory=Sampling)
    optimisation: Optimisation = field(default_factory=Optimisation)
    evaluation: Evaluation = field(default_factory=Evaluation)
    judge: JudgeOptions = field(default_factory=JudgeOptions)
    limits: Limits = field(default_factory=Limits)

    @classmethod
    def of(cls, **options: Any) -> Self:  # noqa: ANN401 - each option has its own type
        """Make a config from flat options, such as `of(learning_rate=1e-5, rollouts=4)`.

        Raises:
            TypeError: an option does not exist.
        """
        return cls().override(**options)

    @classmethod
    def at(cls, scale: Scale) -> Self:
        """The defaults at a scale."""
        names = cls.option_names()
        sizes = LAPTOP if scale == "laptop" else {}
        return cls.of(scale=scale, **{k: v for k, v in sizes.items() if k in names})

    @classmethod
    def option_names(cls) -> frozenset[str]:
        """Flat names of all options."""
        return frozenset(cls().options())

    def options(self) -> dict[str, Any]:
        """All options by their flat names, as config.json holds them."""
        options: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            options |= vars(value) if is_dataclass(value) else {f.name: value}
        return options

    def override(self, **options: Any) -> Self:  # noqa: ANN401 - each option has its own type
        """Return a copy with other values of some flat options.

        Raises:
            TypeError: an option does not exist.
        """
        changes: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if is_dataclass(value) and not isinstance(value, type):
                names = vars(value).keys() & options.keys()
                if names:
                    changes[f.name] = replace(value, **{name: options.pop(name) for name in names})
            elif f.name in options:
                changes[f.name] = options.pop(f.name)
        if options:
            raise TypeError(f"{type(self).__qualname__} has no option {', '.join(options)}")
        return replace(self, **changes)

    @property
    def has_reference(self) -> bool:
        """True if log-probabilities under the initial model are needed."""
        return self.optimisation.kl != 0

    @property
    def depends_on_length(self) -> bool:
        """True if an iteration's computation depends on how many iterations there are."""
        optimisation = self.optimisation
        return (
            optimisation.schedule != "constant"
            or optimisation.warmup > 0
            or self.environment.curriculum > 0
        )

    def validate(self) -> None:
        """Check option values. Raises UsageError if one is out of range."""
        self.environment.validate()
        self.sampling.validate()
        self.optimisation.validate()
        self.evaluation.validate()
        self.judge.validate()
        self.limits.validate()


def validate_initial_rollouts(initial: int, rollouts: int) -> None:
    """Check that a prompt's initial rollouts fit into all its rollouts. Raises UsageError."""
    _reject_if(
        (
            initial > rollouts,
            f"--initial-rollouts {initial} is more than --rollouts {rollouts}, which counts "
            "them and the branches of a prompt; give at most as many",
        )
    )


def _reject_if(*checks: tuple[bool, str]) -> None:
    """Raise UsageError with the message of the first check that is True."""
    for is_wrong, message in checks:
        if is_wrong:
            raise UsageError(message)
