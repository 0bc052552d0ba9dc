"""Options of a cold start."""

from __future__ import annotations

from dataclasses import dataclass, field

from learners.config import Optimisation, RunConfig

ADAM_BETAS = (0.9, 0.98)
"""A short run forgets its first gradients sooner than with the papers' 0.999."""


@dataclass(frozen=True)
class Config(RunConfig):
    """Options of the cold start, besides those of every run."""

    optimisation: Optimisation = field(default_factory=lambda: Optimisation(adam_betas=ADAM_BETAS))
    demonstrations: int | None = None
    """Number of scripted episodes to train on, from the first; None: all."""
    transcripts: str | None = None
    """Train on written episodes instead: a .json, .jsonl or .parquet file or a hub id, in the form
    of ARPO-SFT-54K; results are read as written, no tool is run. See sft/transcripts.py."""
    epochs: int = 1
    """Passes over the training data."""
    batch_tokens: int | None = None
    """Padded tokens per optimizer step; None: 1200 for tiny, 4096 otherwise."""
    observation_weight: float | None = None
    """Weight of predicting prompts and results; None: 1 for new weights, 0 otherwise."""

    @property
    def new_weights(self) -> bool:
        """True if the model has never been trained."""
        return self.training.model == "tiny"

    def resolve(self) -> Config:
        """Return the config with its None fields decided."""
        new, weight = self.new_weights, self.observation_weight
        return self.override(
            optimizer=self.optimisation.optimizer or ("muon" if new else "adamw"),
            learning_rate=self.optimisation.learning_rate or (3e-3 if new else 2e-5),
            batch_tokens=self.batch_tokens or (1200 if new else 4096),
            observation_weight=float(new) if weight is None else weight,
        )
