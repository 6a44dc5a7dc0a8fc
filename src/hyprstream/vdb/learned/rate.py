"""Chooses the step: what an adapter may lose, or what it may take.

Training through rounding needs the rate as a function that has a gradient. With x the
integers of one side of a component before rounding, n of them, it is

    n / 2 * log2(1 + 17.08 * mean(x^2))  bits,    17.08 = 2 pi e,

the entropy of a normal distribution of that variance in a unit step, made 0 at 0. It is
computed where the gradients are; `vdb.learned` has none.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import e, pi, sqrt

from hyprstream.errors import InvalidRequestError
from hyprstream.vdb.learned.quantised import Quantised
from hyprstream.vdb.learned.rounding import relative_error, round_source
from hyprstream.vdb.learned.source import PairSource, Source
from hyprstream.vdb.learned.writing import write_key
from hyprstream.vdb.tensors import SparseTensor

DEFAULT_ERROR = 0.15
"""Relative error of what an adapter adds that keeps about 99% of what it has learnt."""

PROXY_SLOPE = 2 * pi * e
"""The factor of the mean square in the rate that training uses."""

_TRIES = 16
_EDGE = 1.02
_CLOSE = 0.99  # of the goal; closer is not worth another try
_LEAST_ERROR = 1e-3  # scales are not finer


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What the step is chosen by; the coarsest step that reaches it is.

    Attributes:
        error: The largest relative error of what the adapter adds, if nothing else is given.
        size_bytes: The largest size of the stream; the error is then as small as it lets.
        is_good: Tells whether decoded tensors are good enough, for example by a held-out
            loss; they get better with smaller steps. The error is not looked at then.
        update_dead_zone: Below this, in steps, a difference from the parent becomes 0. 0.7 takes
            0.6 times the bytes of 0.6 at equal error, where versions move by a few percent.
            What it leaves out lies in the direction of the last moves: for versions that move
            by more, 0.5 keeps more of what they learnt.
    """

    error: float = DEFAULT_ERROR
    size_bytes: int | None = None
    is_good: Callable[[Mapping[str, SparseTensor]], bool] | None = None
    update_dead_zone: float = 0.7

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            InvalidRequestError: One is out of range, or two goals are given.
        """
        if not _LEAST_ERROR <= self.error < 1:
            raise InvalidRequestError(
                f"an error of {self.error} is not between {_LEAST_ERROR} and 1",
                hint="0.15 keeps about 99%, 0.35 about 95% of what an adapter has learnt.",
            )
        if not 0.5 <= self.update_dead_zone <= 1:
            raise InvalidRequestError(
                f"a dead zone of {self.update_dead_zone} is not between 0.5 and 1",
                hint="0.7 is for versions that move by a few percent, 0.5 for larger moves.",
            )
        if self.size_bytes is not None and self.is_good is not None:
            raise InvalidRequestError(
                "the size and the quality cannot both be the goal", hint="Leave one out."
            )


def choose(source: Source, target: Target) -> Quantised:
    """Round an adapter at the coarsest step that reaches the target.

    Raises:
        InvalidRequestError: No step does.
        InvalidAdapterError: The adapter's values are too large for it.
    """
    start = first_step(source, target.error)
    if target.size_bytes is not None:
        return _by_size(source, start, target.size_bytes)
    if target.is_good is not None:
        return _by_quality(source, start, target.is_good)
    return _by_error(source, start, target.error)


def first_step(source: Source, error: float) -> float:
    """Return the step that would give about this error if all integers were used."""
    energy = sum(part.energy() for part in source.values())
    num_values = sum(
        part.u.size + part.v.size if isinstance(part, PairSource) else part.values.size
        for part in source.values()
    )
    return error * sqrt(12 * energy / num_values) if energy and num_values else 1.0


def _by_error(source: Source, step: float, goal: float) -> Quantised:
    """Follow the error, which is nearly proportional to the step, to just below the goal."""
    found = round_source(source, step)
    error = relative_error(source, found)
    if not error:
        return found
    low, best = 0.0, None
    high = float("inf")
    for _ in range(_TRIES):
        if error <= goal:
            low, best = step, found
            if error >= _CLOSE * goal:
                break
        else:
            high = step
        step *= min(4.0, max(0.25, 0.995 * goal / max(error, 1e-12)))
        if not low < step < high:
            step = sqrt(low * high) if low else high / 2
        found = round_source(source, step)
        error = relative_error(source, found)
    if best is None:
        raise InvalidRequestError(
            f"no step keeps the error below {goal}", hint="Allow a larger error."
        )
    return best


def _by_size(source: Source, step: float, goal: int) -> Quantised:
    fine, coarse = _edge(source, step, lambda found: len(write_key(found)) > goal)
    del fine
    if coarse is None:
        raise InvalidRequestError(
            f"the adapter does not fit into {goal} bytes", hint="Allow more bytes."
        )
    return coarse


def _by_quality(
    source: Source, step: float, is_good: Callable[[Mapping[str, SparseTensor]], bool]
) -> Quantised:
    fine, _ = _edge(source, step, lambda found: is_good(found.tensors()))
    if fine is None:
        raise InvalidRequestError(
            "the adapter is not good enough at any step, however fine",
            hint="Compare with the adapter before it was coded.",
        )
    return fine


def _edge(
    source: Source, step: float, is_fine: Callable[[Quantised], bool]
) -> tuple[Quantised | None, Quantised | None]:
    """Search the step above which `is_fine` fails, to 2%; return what lies on either side.

    One of both is None where no step lies on that side of the edge.
    """
    fine: tuple[float, Quantised] | None = None
    coarse: tuple[float, Quantised] | None = None
    for _ in range(_TRIES):
        found = round_source(source, step)
        if is_fine(found):
            fine = step, found
            step = sqrt(step * coarse[0]) if coarse else 2 * step
        else:
            coarse = step, found
            step = sqrt(step * fine[0]) if fine else step / 2
        if fine and coarse and coarse[0] <= _EDGE * fine[0]:
            break
    return fine and fine[1], coarse and coarse[1]
