"""How an adapter is trained. Plain data, no torch."""

import math
from dataclasses import dataclass
from typing import Literal

from hyprstream.errors import InvalidSettingsError

OptimizerName = Literal["adamw", "muon"]
Schedule = Literal["constant", "linear", "cosine"]

_REGROW_END = 0.75  # of the schedule: the last masks have time to settle (RigL)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Optimizer, schedule and sizes of the training of one adapter.

    Example:
        >>> config = TrainConfig(learning_rate=1e-3, warmup_steps=2, schedule="linear",
        ...                      total_steps=6)
        >>> [round(config.rate(step), 6) for step in range(7)]
        [0.0005, 0.001, 0.001, 0.00075, 0.0005, 0.00025, 0.0]
    """

    learning_rate: float = 2e-4
    """Highest rate of the schedule, above 0 and at most 1."""
    warmup_steps: int = 0
    """Steps over which the rate rises to its highest."""
    schedule: Schedule = "constant"
    """How the rate falls after that: not, or down to `final_share` at `total_steps`."""
    total_steps: int | None = None
    """Steps in all; linear and cosine schedules need to know."""
    final_share: float = 0.0
    """Share of the highest rate that is left in the end."""
    optimizer: OptimizerName = "adamw"
    """adamw, or muon: matrices without a mask are moved by orthogonal steps, at rates that
    compare with those of AdamW, and all else by AdamW."""
    lora_plus_ratio: float = 1.0
    """Rate of B over that of A in low-rank adapters (LoRA+, arXiv:2402.12354)."""
    weight_decay: float = 0.0
    """Share of a parameter, times the rate, that a step takes away."""
    betas: tuple[float, float] = (0.9, 0.999)
    """How much of the past the means of AdamW keep."""
    max_grad_norm: float | None = 1.0
    """Norm of all gradients together to which larger ones are scaled down; None: never."""
    batch_tokens: int = 2048
    """Tokens that are computed at a time; what memory grows with. No sample may be longer."""
    accumulation: int = 1
    """Batches of that many tokens in an optimizer step."""
    base_pull: float = 0.0
    """Weight of the divergence from the base model (KL, nats a token) beside the loss."""
    anchor_tokens: int = 256
    """Tokens of anchors in a batch, on which the divergence is measured where there are some."""
    preference_beta: float = 0.1
    """How far preferences may lead from the model that they are compared with: the larger, the
    less far."""
    recompute: bool = False
    """Keep only the inputs of layers for the backward pass: less memory, more time."""
    regrow_every: int = 0
    """Steps between moves of the masks of sparse adapters (RigL); 0: never."""
    regrow_fraction: float = 0.3
    """Share of the active elements that the first move gives up; with `total_steps` the share
    falls along a cosine to 0 at three quarters of them."""
    seed: int = 0
    """Decides the order of samples and what dropout hides."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        _check_real("learning_rate", self.learning_rate, 0, 1, above=True)
        _check_real("final_share", self.final_share, 0, 1)
        _check_real("lora_plus_ratio", self.lora_plus_ratio, 0, 1e3, above=True)
        _check_real("weight_decay", self.weight_decay, 0, 1)
        _check_real("base_pull", self.base_pull, 0, 1e6)
        _check_real("preference_beta", self.preference_beta, 0, 100, above=True)
        _check_real("regrow_fraction", self.regrow_fraction, 0, 1)
        for beta in self.betas:
            _check_real("betas", beta, 0, 0.999999)
        if self.max_grad_norm is not None:
            _check_real("max_grad_norm", self.max_grad_norm, 0, math.inf, above=True)
        for name, least in (("warmup_steps", 0), ("batch_tokens", 1), ("anchor_tokens", 1),
                            ("accumulation", 1), ("regrow_every", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint=f"Make it {least} or more."
                )
        self._check_total()

    def _check_total(self) -> None:
        if self.total_steps is None:
            if self.schedule != "constant":
                raise InvalidSettingsError(
                    f"schedule is {self.schedule}, and total_steps is not set",
                    hint="Say how many steps there will be, or keep the rate constant.",
                )
        elif self.total_steps <= self.warmup_steps:
            raise InvalidSettingsError(
                f"total_steps is {self.total_steps}, warmup_steps {self.warmup_steps}",
                hint="Make total_steps the larger one.",
            )

    def rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.schedule == "constant" or self.total_steps is None:
            return self.learning_rate
        done = min(1.0, (step - self.warmup_steps) / (self.total_steps - self.warmup_steps))
        left = 1 - done if self.schedule == "linear" else (1 + math.cos(math.pi * done)) / 2
        return self.learning_rate * (self.final_share + (1 - self.final_share) * left)

    def regrowth(self, step: int) -> float:
        """Return the share of active elements that masks give up after a step; 0: none move."""
        if not self.regrow_every or (step + 1) % self.regrow_every:
            return 0.0
        if self.total_steps is None:
            return self.regrow_fraction
        done = min(1.0, (step + 1) / (_REGROW_END * self.total_steps))
        return self.regrow_fraction * (1 + math.cos(math.pi * done)) / 2


@dataclass(frozen=True, slots=True, kw_only=True)
class FinishConfig:
    """How an adapter is trained through the rounding of the learned code (`train/finish.py`)."""

    coarseness: float = 1.5
    """Step of the rounding, in root mean square sizes of components by the root of 200."""
    rate_weight: float = 0.02
    """Weight of the rate (bits a value) beside the loss (nats a token)."""
    num_steps: int = 150
    """Optimizer steps."""
    learning_rate: float = 0.025
    """In steps of the rounding; it falls to a twentieth along a cosine."""
    batch_tokens: int = 2048
    """Tokens that are computed at a time."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        _check_real("coarseness", self.coarseness, 0, 1000, above=True)
        _check_real("rate_weight", self.rate_weight, 0, 1000)
        _check_real("learning_rate", self.learning_rate, 0, 1, above=True)
        for name in ("num_steps", "batch_tokens"):
            if getattr(self, name) < 1:
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 1 or more."
                )

    def training(self) -> TrainConfig:
        """Return optimizer and schedule."""
        return TrainConfig(
            learning_rate=self.learning_rate,
            warmup_steps=min(5, self.num_steps - 1),
            schedule="cosine",
            total_steps=self.num_steps,
            final_share=0.05,
            betas=(0.9, 0.99),
            max_grad_norm=None,
            batch_tokens=self.batch_tokens,
        )


def _check_real(name: str, value: float, least: float, most: float, *, above: bool = False) -> None:
    if not (least < value if above else least <= value) or not value <= most:
        bound = f"above {least}" if above else f"{least} or more"
        raise InvalidSettingsError(
            f"{name} is {value}", hint=f"Make it {bound}, and at most {most}."
        )
