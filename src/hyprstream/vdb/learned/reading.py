"""Streams to quantised adapters. The bytes need not be sound: the end is an adapter or an error.

Nothing larger than allowed is made: every size is checked where it is read.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from hyprstream.errors import CorruptGridError, IncompatibleAdapterError, InvalidAdapterError
from hyprstream.vdb.entropy.groups import Coded
from hyprstream.vdb.entropy.masks import from_runs, seeded_indices
from hyprstream.vdb.entropy.reader import decode
from hyprstream.vdb.learned import frame
from hyprstream.vdb.learned.frame import Frame
from hyprstream.vdb.learned.layout import Layout, Note, from_json
from hyprstream.vdb.learned.quantised import Codes, Mask, Pair, Quantised, Single
from hyprstream.vdb.learned.scales import MAX_CODE
from hyprstream.vdb.learned.side import codes_of, predicted_classes, read_codes

MAX_VALUES = 1 << 28
"""Numbers that a stream may make in memory, unless the caller says otherwise: 1 GiB."""


def read(
    data: bytes, parent: Quantised | None = None, *, max_values: int = MAX_VALUES
) -> Quantised:
    """Read a stream.

    Args:
        data: The stream.
        parent: What was read of the version that an update changes; ignored by a key frame.
        max_values: How many numbers the adapter may have.

    Raises:
        UnsupportedCodecError: It is of a version that is not known here.
        IncompatibleAdapterError: It is an update, and of another parent or of none.
        CorruptGridError: It is no stream, or damaged, or larger than allowed.
    """
    opened = frame.read(data)
    try:
        if not opened.depth:
            return _read_key(opened, frame.identify(data), max_values)
        if parent is None or parent.identity != opened.parent:
            raise IncompatibleAdapterError(
                "the stream is an update of a version that is not at hand",
                hint="Decode its parent first, and give what came of it.",
            )
        return _read_update(opened, frame.identify(data), parent)
    except InvalidAdapterError as error:
        raise CorruptGridError(f"what it holds contradicts itself: {error}") from error


def _read_key(opened: Frame, identity: bytes, max_values: int) -> Quantised:
    step_code = _integer(opened.table.get("step"), -MAX_CODE, MAX_CODE)
    described = opened.table.get("parts")
    if not isinstance(described, list):
        raise CorruptGridError("its table of contents lists no parts")
    notes = [from_json(part) for part in described]
    if len({note.layout.name for note in notes}) < len(notes):
        raise CorruptGridError("two of its parts have one name")
    codes = _codes(opened, step_code, [note.layout.num_scales for note in notes])
    layouts = _with_masks(notes, opened.blocks[:-1], max_values)
    if sum(layout.num_values() for layout in layouts) > max_values:
        raise CorruptGridError(f"it holds more than {max_values} numbers")
    if not opened.blocks:
        raise CorruptGridError("its integers are missing")
    block, predicted = opened.blocks[-1], predicted_classes(layouts, codes, step_code)
    if len(block.classes) != len(predicted):
        raise CorruptGridError("it has more or fewer groups than its parts need")
    block = replace(block, classes=block.classes + predicted)
    return Quantised(
        parts=_parts(layouts, codes, block),
        step_code=step_code,
        identity=identity,
    )


def _read_update(opened: Frame, identity: bytes, parent: Quantised) -> Quantised:
    if opened.depth != parent.depth + 1 or len(opened.blocks) != 1:
        raise CorruptGridError("it does not follow its parent")
    more = opened.table.get("more", [0] * len(parent.parts))
    if not isinstance(more, list) or len(more) != len(parent.parts):
        raise CorruptGridError("it changes more or fewer parts than its parent has")
    layouts = [
        Layout.of(name, part).with_more(_integer(extra, 0, MAX_CODE))
        for (name, part), extra in zip(parent.parts.items(), more, strict=True)
    ]
    codes = [
        np.concatenate([codes_of(part), new])
        for part, new in zip(
            parent.parts.values(), _codes(opened, parent.step_code, more), strict=True
        )
    ]
    differences = _parts(layouts, codes, opened.blocks[0])
    parts = {name: _sum(parent.parts[name], part) for name, part in differences.items()}
    return Quantised(parts=parts, step_code=parent.step_code, depth=opened.depth, identity=identity)


def _codes(opened: Frame, step_code: int, counts: Sequence[int]) -> list[Codes]:
    grain = _integer(opened.table.get("grain", 1), 1, MAX_CODE)
    return read_codes(opened.codes, grain, step_code, counts)


def _with_masks(notes: Sequence[Note], blocks: Sequence[Coded], max_values: int) -> list[Layout]:
    """Make the masks of all parts."""
    sizes = [
        (note, size, mask)
        for note in notes
        for size, mask in zip(note.layout.sizes(), note.masks, strict=True)
    ]
    num_runs = sum(mask is not None and "runs" in mask for _, _, mask in sizes)
    if bool(num_runs) != bool(blocks):
        raise CorruptGridError("its masks are missing, or belong to nothing")
    counts = iter(decode(blocks[0], [], [max_values] * 2 * num_runs)[1] if blocks else [])
    left = max_values
    masks: list[Mask | None] = []
    for _, size, mask in sizes:
        if mask is None:
            masks.append(None)
        elif "runs" in mask:
            indices = from_runs(mask["runs"], next(counts), next(counts), size, left)
            masks.append(Mask(indices=indices))
            left -= len(indices)
        else:
            if size > max_values or mask["active"] > left:
                raise CorruptGridError(f"it has a mask of more than {max_values} elements")
            indices = seeded_indices(mask["seed"], size, mask["active"])
            masks.append(Mask(indices=indices, seed=mask["seed"]))
            left -= len(indices)
    found = iter(masks)
    return [replace(note.layout, masks=tuple(next(found) for _ in note.masks)) for note in notes]


def _parts(
    layouts: Sequence[Layout], codes: Sequence[Codes], block: Coded
) -> dict[str, Pair | Single]:
    lengths = [layout.lengths() for layout in layouts]
    together = [length for part in lengths for length in part]
    flat, _ = decode(block, together, [])
    parts: dict[str, Pair | Single] = {}
    start = 0
    for layout, part, part_lengths in zip(layouts, codes, lengths, strict=True):
        size = sum(part_lengths)
        parts[layout.name] = layout.build(flat[start : start + size], part)
        start += size
    return parts


def _sum(before: Pair | Single, change: Pair | Single) -> Pair | Single:
    if isinstance(change, Single):
        assert isinstance(before, Single)
        return replace(change, code=before.code, values=before.values + change.values)
    assert isinstance(before, Pair)
    change.p[: len(before.p)] += before.p
    change.q[: len(before.q)] += before.q
    return replace(change, p=change.p, q=change.q)  # checked again


def _integer(value: object, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise CorruptGridError(f"it says {value!r} where {least} to {most} is possible")
    return value
