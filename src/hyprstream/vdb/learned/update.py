"""Rounds a version in the frame of an earlier one, so that what did not move costs nothing.

The earlier version's components and scales stay. The factors of the new version are chosen
nearest to the earlier ones among all that make the same change to the layer, and of each
integer only the difference is rounded. As the differences are taken from what was decoded,
errors do not add up from version to version.
"""

from dataclasses import replace
from math import sqrt

import numpy as np

from hyprstream.errors import IncompatibleAdapterError
from hyprstream.vdb.learned.quantised import Mask, Pair, Quantised, Single
from hyprstream.vdb.learned.rounding import dead_zone_round, round_part
from hyprstream.vdb.learned.scales import scales
from hyprstream.vdb.learned.source import PairSource, Reals, SingleSource, Source, singular

_NEW_COMPONENT = 1.0  # root mean square, in steps, from which what is left is worth its own


def round_update(source: Source, parent: Quantised, dead_zone: float) -> Quantised:
    """Round an adapter at the scales of its parent, with a dead zone of its own.

    Raises:
        IncompatibleAdapterError: The parent changes other layers, or in another form.
        InvalidAdapterError: A value is too large for the parent's scales.
    """
    if source.keys() != parent.parts.keys():
        raise IncompatibleAdapterError(
            "the adapter changes other layers than its parent",
            hint="Encode it without a parent.",
        )
    step = float(scales(np.array([parent.step_code]))[0])
    parts = {
        name: _moved(source[name], part, step, dead_zone) for name, part in parent.parts.items()
    }
    return Quantised(parts=parts, step_code=parent.step_code, depth=parent.depth + 1)


def _moved(
    part: PairSource | SingleSource, before: Pair | Single, step: float, dead_zone: float
) -> Pair | Single:
    if isinstance(part, SingleSource) and isinstance(before, Single):
        _check(part.shape == before.shape and _is_same(part.mask, before.mask))
        scale = float(scales(np.array([before.code]))[0])
        change = dead_zone_round(part.values / scale - before.values, dead_zone)
        return replace(before, values=before.values + change)
    _check(isinstance(part, PairSource) and isinstance(before, Pair))
    assert isinstance(part, PairSource)
    assert isinstance(before, Pair)
    shape = part.rank, part.u.shape[1], part.v.shape[1]
    _check(shape == (before.rank, before.p.shape[1], before.q.shape[1]))
    _check(_is_same(part.p_mask, before.p_mask) and _is_same(part.q_mask, before.q_mask))
    if part.is_masked:
        return _moved_masked(part, before, dead_zone)
    return _moved_pair(part, before, step, dead_zone)


def _moved_masked(part: PairSource, before: Pair, dead_zone: float) -> Pair:
    """Move each component by itself, both sides of the same length."""
    factors = scales(before.codes).astype(np.float64)[:, None]
    lengths = np.sqrt(part.sizes)[:, None]
    p = before.p + dead_zone_round(part.u * lengths / factors - before.p, dead_zone)
    q = before.q + dead_zone_round(part.v * lengths / factors - before.q, dead_zone)
    return replace(before, p=p, q=q)


def _moved_pair(part: PairSource, before: Pair, step: float, dead_zone: float) -> Pair:
    factors = scales(before.codes).astype(np.float64)[:, None]
    # The nearest a for the earlier b, then the b that goes with it.
    a = np.linalg.lstsq((factors * before.q).T, part.v.T, rcond=None)[0] @ (
        part.sizes[:, None] * part.u
    )
    p = before.p + dead_zone_round(a / factors - before.p, dead_zone)
    b = np.linalg.lstsq(a.T, part.u.T, rcond=None)[0] @ (part.sizes[:, None] * part.v)
    q = before.q + dead_zone_round(b / factors - before.q, dead_zone)
    moved = replace(before, p=p, q=q)
    new = _left_over(part, a, b, step)
    if not len(new.sizes):
        return moved
    grain = int(np.gcd.reduce(before.codes)) if len(before.codes) else 1
    extra = round_part(new, step, grain)
    assert isinstance(extra, Pair)
    return replace(
        moved,
        codes=np.concatenate([moved.codes, extra.codes]),
        p=np.concatenate([moved.p, extra.p]),
        q=np.concatenate([moved.q, extra.q]),
    )


def _left_over(part: PairSource, a: Reals, b: Reals, step: float) -> PairSource:
    """Return what the earlier components have no room for and is worth components of its own."""
    room = part.rank - len(a)
    together = np.concatenate([part.sizes[:, None] * part.u, -a]).T
    sizes, u, v = singular(together, np.concatenate([part.v, b]))
    width = max(u.shape[1], v.shape[1])
    worth = int((sizes > _NEW_COMPONENT * step * sqrt(width)).sum())
    kept = slice(0, min(room, worth))
    return PairSource(
        rank=part.rank, sizes=sizes[kept], u=u[kept], v=v[kept], p_mask=None, q_mask=None
    )


def _is_same(mask: Mask | None, before: Mask | None) -> bool:
    if mask is None or before is None:
        return mask is before
    return np.array_equal(mask.indices, before.indices)


def _check(fits: bool) -> None:  # noqa: FBT001  # what is checked is said by the caller
    if not fits:
        raise IncompatibleAdapterError(
            "the adapter has other shapes or other active elements than its parent",
            hint="Encode it without a parent.",
        )
