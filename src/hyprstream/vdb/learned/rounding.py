"""Real directions to integers, at one step for the whole adapter.

The integers of a component are size u / step and size v / step, rounded with a dead zone.
Equal steps everywhere spread the error evenly over what the adapter adds, whatever the
layer: the reverse water-filling of rate-distortion theory. A component below the water
becomes zeros and is left out. The scale of a component is then chosen so that the sum of
squares of the error is least.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import log, log2, sqrt

import numpy as np

from hyprstream.errors import InvalidAdapterError
from hyprstream.vdb.entropy.groups import MAX_MAGNITUDE
from hyprstream.vdb.learned.quantised import Integers, Pair, Quantised, Single
from hyprstream.vdb.learned.scales import PER_OCTAVE, scale_codes, scales
from hyprstream.vdb.learned.source import PairSource, Reals, SingleSource, Source, read_source
from hyprstream.vdb.tensors import SparseTensor

DEAD_ZONE = 0.6
"""Below this, in steps, a value becomes 0; below this plus 1 it becomes 1, and so on."""

_FEW = 64  # active elements of a component, on both sides, that are worth a scale of its own
_GRAIN_SHARE = 30.0  # the error of scales is to be this much smaller than that of values


def quantise(tensors: Mapping[str, SparseTensor], step: float) -> Quantised:
    """Round an adapter at a step, in units of what it adds to a layer's matrix.

    Raises:
        InvalidAdapterError: A value is no finite number, or too large for the step.
    """
    return round_source(read_source(tensors), step)


def round_source(source: Source, step: float) -> Quantised:
    """Round an adapter that was taken apart.

    Raises:
        InvalidAdapterError: A value is too large for the step.
    """
    step_code = int(scale_codes(np.array([step]))[0])
    step = float(scales(np.array([step_code]))[0])
    rounded = {name: _rounded(part, step) for name, part in source.items()}
    grain = _grain(source, rounded.values())
    parts = {name: _part(part, rounded[name], grain) for name, part in source.items()}
    return Quantised(parts=parts, step_code=step_code)


def round_part(part: PairSource | SingleSource, step: float, grain: int) -> Pair | Single:
    """Round one part; codes of its scales become multiples of the grain.

    Raises:
        InvalidAdapterError: A value is too large for the step.
    """
    return _part(part, _rounded(part, step), grain)


def relative_error(source: Source, quantised: Quantised) -> float:
    """Return the error of what the adapter adds, as a share of it: of Frobenius norms.

    A single tensor counts as what it adds. 0 for an adapter that adds nothing.
    """
    energy = _energy(source)
    left = sum(_error(part, quantised.parts[name]) for name, part in source.items())
    return sqrt(max(0.0, left) / energy) if energy else 0.0


def dead_zone_round(values: Reals, dead_zone: float = DEAD_ZONE) -> Integers:
    """Round to integers; what is below the dead zone becomes 0, below it plus 1 one.

    Raises:
        InvalidAdapterError: A value is too large.
    """
    magnitudes = np.floor(np.abs(values) + (1 - dead_zone))
    if magnitudes.max(initial=0) > MAX_MAGNITUDE:
        raise InvalidAdapterError(
            "the adapter has values that are too large for the step of its code",
            hint="Choose a larger step or a larger error.",
        )
    return np.copysign(magnitudes, values).astype(np.int32)


@dataclass(frozen=True, slots=True)
class _Rounded:
    """Integers of one part, the best scale of each component squared, and the error left."""

    p: Integers
    q: Integers
    squares: Reals
    error: float


def _rounded(part: PairSource | SingleSource, step: float) -> _Rounded:
    if isinstance(part, SingleSource):
        values = dead_zone_round(part.values / step)
        length = float(values @ values.astype(np.float64))
        scale = float(values @ part.values) / length if length else step
        error = float(np.square(part.values - scale * values).sum())
        return _Rounded(values, values, np.array([scale * scale]), error)
    if part.is_masked:
        return _rounded_masked(part, step)
    p = dead_zone_round(part.u * (part.sizes / step)[:, None])
    q = dead_zone_round(part.v * (part.sizes / step)[:, None])
    kept = p.any(axis=1) & q.any(axis=1)
    squares = step * step / part.sizes[kept]
    p, q = _settled(part, p[kept], q[kept], squares)
    kept = p.any(axis=1) & q.any(axis=1)
    return _fit(part, p[kept], q[kept], squares[kept])


def _rounded_masked(part: PairSource, step: float) -> _Rounded:
    if part.num_active < _FEW * len(part.sizes):
        return _rounded_alike(part, step)
    p = dead_zone_round(part.u * (part.sizes / step)[:, None])
    q = dead_zone_round(part.v * (part.sizes / step)[:, None])
    # A component that rounds to nothing stays: its elements are active none the less.
    empty = ~(p.any(axis=1) & q.any(axis=1))
    p[empty], q[empty] = 0, 0
    sizes = np.where(empty, 1, part.sizes)
    return _fit(part, p, q, step * step / sizes)


def _rounded_alike(part: PairSource, step: float) -> _Rounded:
    """Round at one scale for all components: where they have few elements, scales cost more."""
    scale = step / sqrt(float(part.sizes.mean()) or 1.0)
    roots = np.sqrt(part.sizes)[:, None] / scale
    p, q = dead_zone_round(part.u * roots), dead_zone_round(part.v * roots)
    gram, overlap = _products(part, p, q)
    energy, common = float(gram.sum()), float(overlap.sum())
    square = common / energy if energy and common > 0 else scale * scale
    error = part.energy() - 2 * square * common + square * square * energy
    return _Rounded(p, q, np.full(len(part.sizes), square), error)


def _settled(
    part: PairSource, p: Integers, q: Integers, squares: Reals
) -> tuple[Integers, Integers]:
    """Round each side again, for what the other side has become.

    What rounding one side has moved into the span of the others is put right by the other
    side: 1 to 3% fewer bytes at equal error.
    """
    real = p.astype(np.float64)
    best = np.linalg.lstsq(real @ real.T, (real @ part.u.T * part.sizes) @ part.v, rcond=None)[0]
    q = dead_zone_round(best / squares[:, None])
    real = q.astype(np.float64)
    best = np.linalg.lstsq(real @ real.T, (real @ part.v.T * part.sizes) @ part.u, rcond=None)[0]
    return dead_zone_round(best / squares[:, None]), q


def _fit(part: PairSource, p: Integers, q: Integers, rounded: Reals) -> _Rounded:
    """Choose the scales of all components of a pair together, by least squares.

    Args:
        part: The truth.
        p: Integers of one side.
        q: Integers of the other.
        rounded: Squares of the scales at which they were rounded.
    """
    gram, overlap = _products(part, p, q)
    used = np.diag(gram) > 0
    squares = rounded.copy()
    solved = np.linalg.lstsq(gram[np.ix_(used, used)], overlap[used], rcond=None)[0]
    if (solved > 0).all():  # else some are nearly alike, and stay as they are
        squares[used] = solved
    error = part.energy() - 2 * squares @ overlap + squares @ gram @ squares
    return _Rounded(p, q, squares, float(error))


def _products(part: PairSource, p: Integers, q: Integers) -> tuple[Reals, Reals]:
    """Return what components have in common with one another, and with the truth."""
    p, q = p.astype(np.float64), q.astype(np.float64)
    gram = (p @ p.T) * (q @ q.T)
    return gram, ((p @ part.u.T) * (q @ part.v.T)) @ part.sizes


def _part(part: PairSource | SingleSource, rounded: _Rounded, grain: int) -> Pair | Single:
    codes = scale_codes(np.sqrt(rounded.squares), grain)
    if isinstance(part, SingleSource):
        return Single(shape=part.shape, code=int(codes[0]), values=rounded.p, mask=part.mask)
    masks = {"p_mask": part.p_mask, "q_mask": part.q_mask}
    return Pair(rank=part.rank, codes=codes, p=rounded.p, q=rounded.q, **masks)


def _error(part: PairSource | SingleSource, coded: Pair | Single) -> float:
    if isinstance(part, SingleSource):
        assert isinstance(coded, Single)
        scale = float(scales(np.array([coded.code]))[0])
        return float(np.square(part.values - scale * coded.values).sum())
    assert isinstance(coded, Pair)
    gram, overlap = _products(part, coded.p, coded.q)
    squares = np.square(scales(coded.codes), dtype=np.float64)
    return part.energy() - 2 * float(squares @ overlap) + float(squares @ gram @ squares)


def _energy(source: Source) -> float:
    return sum(part.energy() for part in source.values())


def _grain(source: Source, rounded: Iterable[_Rounded]) -> int:
    """Return the power of two to whose multiples codes of scales are rounded.

    Rounding to multiples of g moves the product of two scales by up to g / 1024 octaves.
    """
    energy = _energy(source)
    error = sqrt(max(0.0, sum(part.error for part in rounded)) / energy) if energy else 1.0
    spread = log(2) / PER_OCTAVE / sqrt(3)
    return 1 << max(0, min(6, int(log2(max(error / (_GRAIN_SHARE * spread), 1)))))
