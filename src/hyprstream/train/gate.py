"""Whether a candidate may serve: plain statistics on losses that somebody else measured.

A candidate has to be better on what was set aside of its own samples, and that alone proves
little: who sends poison sends it to both sides of the split. So it must do no harm to samples
that are trusted, however they came to be, and what it learnt from must look like samples at
all: no less likely than noise, answers that have to do with their prompts, no flood and no
contradictions (`train/screen.py`). All checks run; every one that fails is a reason.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.paired import bound_mean

_NO_NUMBER = "a loss is no finite number"

_AROUND = 16  # steps that a gradient is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class GateConfig:
    """What a candidate has to show."""

    alpha: float = 0.01
    """How often chance alone may pass one of the tests."""
    min_held_out: int = 12
    """Fewest samples that were set aside."""
    min_gain: float = 0.0
    """Nats a token that the loss on them has to fall by, beyond doubt."""
    min_trusted: int = 16
    """Fewest samples of each trusted set."""
    max_regression: float = 0.1
    """Nats a token by which the loss on a trusted set may rise from a version to the next."""
    max_total_regression: float = 0.2
    """Nats a token by which it may rise above that of the base model, over all versions."""
    max_suspect_share: float = 0.3
    """Share of the samples that may have been screened out."""
    max_norm_growth: float = 2.0
    """Factor by which the norm of the adapter may grow from a version to the next."""
    max_gradient_ratio: float = 8.0
    """Largest gradient of a step, in medians of those around it."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        if not 0 < self.alpha < 0.5:
            raise InvalidSettingsError(f"alpha is {self.alpha}", hint="Choose 0.001 to 0.1.")
        for name in ("min_held_out", "min_trusted"):
            if getattr(self, name) < 8:  # the bounds are not to be trusted below
                raise InvalidSettingsError(
                    f"{name} is {getattr(self, name)}", hint="Make it 8 or more."
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairs:
    """Losses of the same samples under two conditions, in nats a token."""

    before: Sequence[float]
    after: Sequence[float]

    @property
    def changes(self) -> list[float]:
        """By how much each loss rose."""
        return [b - a for a, b in zip(self.before, self.after, strict=True)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Material:
    """What is known of the samples before anything is learnt from them.

    Attributes:
        losses: The parent on each that was not screened out at once.
        association: The parent on answers with their own prompts, and with prompts of others;
            None where samples have no prompts.
        uniform_loss: Of a guess that knows nothing: the logarithm of the vocabulary's size.
        num_samples: Samples that came in.
        num_suspects: Those of them that were screened out.
    """

    losses: Sequence[float]
    association: Pairs | None
    uniform_loss: float
    num_samples: int
    num_suspects: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What was measured of a candidate.

    Attributes:
        held_out: Parent and candidate on samples that were set aside.
        trusted: Parent and candidate on each trusted set, by its name.
        origin: The base model alone on each trusted set.
        material: What it learnt from.
        gradient_norms: Of the steps.
        norms: Of the parent's and the candidate's parameters.
    """

    held_out: Pairs
    trusted: Mapping[str, Pairs]
    origin: Mapping[str, Sequence[float]]
    material: Material
    gradient_norms: Sequence[float] = ()
    norms: tuple[float, float] = (1.0, 1.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the gate decided.

    Attributes:
        accepted: The candidate may serve.
        reasons: Why not; empty if it may.
        numbers: What was looked at.
    """

    accepted: bool
    reasons: tuple[str, ...]
    numbers: Mapping[str, float] = field(default_factory=dict)


class Gate:
    """Decides about candidates. It keeps nothing from one to the next.

    Error rates are simulated in `test_gate.py`; what it does with poisoned samples on a real
    model is measured in `test_poison.py`.
    """

    def __init__(self, config: GateConfig) -> None:
        self._config = config

    def doubts(self, material: Material) -> Verdict:
        """Judge samples before time is spent on them; `verdict` does it again."""
        if not all(map(math.isfinite, _material_losses(material))):
            return Verdict(accepted=False, reasons=(_NO_NUMBER,))
        numbers = dict(self._material_numbers(material))
        reasons = tuple(self._samples(material, numbers))
        return Verdict(accepted=not reasons, reasons=reasons, numbers=_finite(numbers))

    def drift(
        self, trusted: Mapping[str, Pairs], origin: Mapping[str, Sequence[float]]
    ) -> tuple[str, ...]:
        """Tell on which trusted sets a candidate is so far away that `verdict` would refuse it.

        Args:
            trusted: Parent and candidate on some samples of each set.
            origin: The base model on the same.
        """
        config, reasons = self._config, []
        for name, pairs in trusted.items():
            rise = bound_mean(pairs.changes, config.alpha)
            total = statistics.fmean(Pairs(before=origin[name], after=pairs.after).changes)
            if not (rise.high <= config.max_regression and total <= config.max_total_regression):
                reasons.append(
                    f"it drifted: {rise.mean:+.4f} ({rise.high:+.4f}) on {name}, "
                    f"{total:+.4f} from the base model"
                )
        return tuple(reasons)

    def verdict(self, evidence: Evidence) -> Verdict:
        """Judge a candidate."""
        if not all(map(math.isfinite, _losses(evidence))):
            return Verdict(accepted=False, reasons=(_NO_NUMBER,))
        numbers = dict(self._numbers(evidence))
        reasons = (
            *self._amounts(evidence),
            *self._own(evidence, numbers),
            *self._trusted(evidence, numbers),
            *self._samples(evidence.material, numbers),
            *self._steps(numbers),
        )
        return Verdict(accepted=not reasons, reasons=reasons, numbers=_finite(numbers))

    def _numbers(self, evidence: Evidence) -> Iterator[tuple[str, float]]:
        alpha = self._config.alpha
        own = bound_mean(evidence.held_out.changes, alpha)
        yield "held_out", own.mean
        yield "held_out_high", own.high
        for name, pairs in evidence.trusted.items():
            kept = bound_mean(pairs.changes, alpha)
            yield f"trusted/{name}", kept.mean
            yield f"trusted/{name}_high", kept.high
            total = Pairs(before=evidence.origin[name], after=pairs.after)
            yield f"trusted/{name}_total", bound_mean(total.changes, alpha).mean
        yield from self._material_numbers(evidence.material)
        before, after = evidence.norms
        yield "norm_growth", after / before if before else math.inf
        if evidence.gradient_norms:
            yield "gradient_ratio", max(_jumps(evidence.gradient_norms))

    def _material_numbers(self, material: Material) -> Iterator[tuple[str, float]]:
        if material.association is not None:
            low = bound_mean(material.association.changes, self._config.alpha).low
            yield "association_low", low
        if material.losses:
            yield "learnt_median", statistics.median(material.losses)
        yield "suspect_share", material.num_suspects / max(1, material.num_samples)

    def _amounts(self, evidence: Evidence) -> Iterator[str]:
        config = self._config
        if len(evidence.held_out.before) < config.min_held_out:
            yield (
                f"{len(evidence.held_out.before)} samples are set aside, "
                f"{config.min_held_out} are needed"
            )
        if not evidence.trusted:
            yield "there is no trusted set"
        for name, pairs in evidence.trusted.items():
            if len(pairs.before) < config.min_trusted:
                yield f"{name} has {len(pairs.before)} samples, {config.min_trusted} are needed"

    def _own(self, evidence: Evidence, numbers: Mapping[str, float]) -> Iterator[str]:
        high, gain = numbers["held_out_high"], self._config.min_gain
        if evidence.held_out.before and not high < -gain:
            yield f"it is not better on its own samples: {numbers['held_out']:+.4f} ({high:+.4f})"

    def _trusted(self, evidence: Evidence, numbers: Mapping[str, float]) -> Iterator[str]:
        config = self._config
        for name in evidence.trusted:
            high, total = numbers[f"trusted/{name}_high"], numbers[f"trusted/{name}_total"]
            if high > config.max_regression:
                yield f"it is worse on {name}: {numbers[f'trusted/{name}']:+.4f} ({high:+.4f})"
            if total > config.max_total_regression:
                yield f"it is {total:+.4f} away from the base model on {name}"

    def _samples(self, material: Material, numbers: Mapping[str, float]) -> Iterator[str]:
        if numbers["suspect_share"] > self._config.max_suspect_share:
            yield f"{material.num_suspects} of {material.num_samples} samples are suspect"
        if numbers.get("learnt_median", 0.0) > material.uniform_loss:
            yield f"most samples are less likely than noise: {numbers['learnt_median']:.2f}"
        if material.association is not None and not numbers["association_low"] > 0:
            yield "answers have nothing to do with their prompts"

    def _steps(self, numbers: Mapping[str, float]) -> Iterator[str]:
        config = self._config
        if numbers["norm_growth"] > config.max_norm_growth:
            yield f"its norm grew by a factor of {numbers['norm_growth']:.2f}"
        if numbers.get("gradient_ratio", 0.0) > config.max_gradient_ratio:
            yield f"a gradient was {numbers['gradient_ratio']:.1f} times the usual"


def _jumps(norms: Sequence[float]) -> Iterator[float]:
    """Yield each gradient in medians of the steps around it: of all they fall as it learns."""
    for place, norm in enumerate(norms):
        first = max(0, min(place - _AROUND // 2, len(norms) - _AROUND))
        middle = statistics.median(norms[first : first + _AROUND])
        yield norm / middle if middle else math.inf


def _losses(evidence: Evidence) -> Iterator[float]:
    for pair in (evidence.held_out, *evidence.trusted.values()):
        yield from pair.before
        yield from pair.after
    for losses in evidence.origin.values():
        yield from losses
    yield from _material_losses(evidence.material)
    yield from evidence.gradient_norms
    yield from evidence.norms


def _material_losses(material: Material) -> Iterator[float]:
    yield from material.losses
    if material.association is not None:
        yield from material.association.before
        yield from material.association.after


def _finite(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if math.isfinite(value)}
