"""What a stream says about an adapter besides its integers: names, shapes, which are active.

A `Layout` is a part of an adapter without integers and scales. It knows in which groups the
part's integers are coded. It comes from bytes that need not be sound, so that all it says
about sizes is checked before anything of that size is made.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.learned.quantised import Integers, Mask, Pair, Single

_MAX_SIZE = 1 << 40  # elements of one tensor, active or not
_ROW_LENGTH = 64  # the rows of a matrix at least as wide are groups of their own


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One part.

    Attributes:
        name: As in `Quantised.parts`.
        shapes: Shape of the tensor, or of a and of b for a pair.
        kept: Components of a pair that are coded; None for a single tensor.
        masks: Active elements of each; None if all are.
    """

    name: str
    shapes: tuple[tuple[int, ...], ...]
    kept: int | None
    masks: tuple[Mask | None, ...]

    @classmethod
    def of(cls, name: str, part: Pair | Single) -> "Layout":
        """Describe a part."""
        if isinstance(part, Single):
            return cls(name=name, shapes=(part.shape,), kept=None, masks=(part.mask,))
        shapes = (part.p.shape[1], part.rank), (part.rank, part.q.shape[1])
        masks = part.p_mask, part.q_mask
        return cls(name=name, shapes=shapes, kept=len(part.codes), masks=masks)

    @property
    def num_scales(self) -> int:
        """Number of scales of the part."""
        return 1 if self.kept is None else self.kept

    def sizes(self) -> list[int]:
        """Return the number of elements of each tensor, active or not."""
        return [prod(shape) for shape in self.shapes]

    def form(self) -> tuple[object, ...]:
        """Return what an update cannot change: everything but the number of components."""
        masks = [None if mask is None else mask.indices.tobytes() for mask in self.masks]
        return self.name, self.kept is None, self.shapes, tuple(masks)

    def num_values(self) -> int:
        """Return how many numbers the part holds in memory, besides its masks."""
        if self.kept is None and self.masks[0] is not None:
            return len(self.masks[0].indices)
        return sum(prod(shape) for shape in self.shapes)

    def lengths(self) -> list[int]:
        """Return the length of each group of integers."""
        if self.kept is None:
            return self._single_lengths()
        lengths: list[int] = []
        for side, (shape, mask) in enumerate(zip(self.shapes, self.masks, strict=True)):
            if mask is None:
                lengths += [shape[side]] * self.kept
            else:
                lengths += self._components(side)[1].tolist()
        return lengths

    def _single_lengths(self) -> list[int]:
        shape, mask = self.shapes[0], self.masks[0]
        if mask is not None:
            return [len(mask.indices)]
        if len(shape) == 2 and shape[0] and shape[1] >= _ROW_LENGTH:
            return [shape[1]] * shape[0]
        return [prod(shape)]

    def _components(self, side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return where the active elements lie component by component, and how many each has.

        Places are flat indices into the integers, (K, I) or (K, O).
        """
        mask, (height, width) = self.masks[side], self.shapes[side]
        assert mask is not None
        assert self.kept is not None
        places = mask.indices
        if side == 0:  # a is (I, R)
            row, component = np.divmod(places, width)
            places = np.sort(component * height + row)
            width = height
        return places, np.bincount(places // max(1, width), minlength=self.kept)

    def groups(self, part: Pair | Single) -> Iterator[Integers]:
        """Yield the integers of a part of this layout, group by group."""
        if isinstance(part, Single):
            yield from _cut(part.values, self._single_lengths())
            return
        for side, integers in enumerate((part.p, part.q)):
            if self.masks[side] is None:
                yield from integers
            else:
                places, counts = self._components(side)
                yield from _cut(integers.reshape(-1)[places], counts.tolist())

    def build(self, flat: Integers, codes: NDArray[np.int64]) -> Pair | Single:
        """Make the part of its groups, end to end, and the codes of its scales."""
        if self.kept is None:
            shape, mask = self.shapes[0], self.masks[0]
            return Single(shape=shape, code=int(codes[0]), values=flat, mask=mask)
        (inputs, rank), (_, outputs) = self.shapes
        num_p = sum(self.lengths()[: self.kept])
        p = self._side(0, flat[:num_p], inputs)
        q = self._side(1, flat[num_p:], outputs)
        return Pair(rank=rank, codes=codes, p=p, q=q, p_mask=self.masks[0], q_mask=self.masks[1])

    def _side(self, side: int, flat: Integers, width: int) -> Integers:
        assert self.kept is not None
        if self.masks[side] is None:
            return flat.reshape(self.kept, width)
        integers = np.zeros(self.kept * width, np.int32)
        integers[self._components(side)[0]] = flat
        return integers.reshape(self.kept, width)

    def with_more(self, num_components: int) -> "Layout":
        """Return the layout of a pair with more components.

        Raises:
            CorruptGridError: It has no room for them.
        """
        if not num_components:
            return self
        kept = (self.kept or 0) + num_components
        if self.kept is None or kept > self.shapes[0][1]:
            raise CorruptGridError("an update adds components where there is no room")
        return replace(self, kept=kept)


def _cut(values: Integers, lengths: list[int]) -> Iterator[Integers]:
    start = 0
    for length in lengths:
        yield values[start : start + length]
        start += length


def to_json(layout: Layout, divisors: Iterator[int]) -> dict[str, Any]:
    """Describe a layout; masks that have no seed by the next common divisor of their runs."""
    notes = [
        None
        if mask is None
        else {"runs": next(divisors)}
        if mask.seed is None
        else {"seed": mask.seed, "active": len(mask.indices)}
        for mask in layout.masks
    ]
    described: dict[str, Any] = {"name": layout.name}
    if layout.kept is None:
        described["shape"] = list(layout.shapes[0])
    else:
        (inputs, rank), (_, outputs) = layout.shapes
        described |= {"pair": [inputs, rank, outputs], "kept": layout.kept}
    return described | ({"masks": notes} if any(notes) else {})


@dataclass(frozen=True, slots=True)
class Note:
    """A layout as it was read: its masks are not there yet.

    Attributes:
        layout: The layout, without masks.
        masks: For each tensor None, {"runs": divisor}, or {"seed": seed, "active": count}.
    """

    layout: Layout
    masks: tuple[Mapping[str, int] | None, ...]


def from_json(described: object) -> Note:
    """Read what `to_json` wrote.

    Raises:
        CorruptGridError: It is something else.
    """
    try:
        return _note(described)
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptGridError("its table of contents cannot be read") from error


def _note(described: Any) -> Note:
    name, kept = described["name"], described.get("kept")
    if not isinstance(name, str):
        raise TypeError(name)
    shapes: tuple[tuple[int, ...], ...]
    if kept is None:
        shapes = (tuple(_natural(n, _MAX_SIZE) for n in described["shape"]),)
    else:
        inputs, rank, outputs = (_natural(n, _MAX_SIZE) for n in described["pair"])
        kept = _natural(kept, rank)
        shapes = (inputs, rank), (rank, outputs)
    if any(len(shape) > 8 or prod(shape) > _MAX_SIZE for shape in shapes):
        raise ValueError(shapes)
    layout = Layout(name=name, shapes=shapes, kept=kept, masks=(None,) * len(shapes))
    notes = described.get("masks", [None] * len(shapes))
    masks = tuple(_mask_note(note, prod(shape)) for note, shape in zip(notes, shapes, strict=True))
    if kept is not None and any(masks) and kept != shapes[0][1]:
        raise ValueError(kept)
    return Note(layout, masks)


def _mask_note(note: Any, size: int) -> Mapping[str, int] | None:
    if note is None:
        return None
    if "runs" in note:
        return {"runs": _natural(note["runs"], max(1, size))}
    return {"seed": _natural(note["seed"], (1 << 64) - 1), "active": _natural(note["active"], size)}


def _natural(value: object, limit: int) -> int:
    if type(value) is not int or not 0 <= value <= limit:
        raise ValueError(value)
    return value
