"""What describes the integers: codes of scales, and how they predict the classes of groups."""

from collections.abc import Sequence
from math import gcd

import numpy as np

from hyprstream.errors import CorruptGridError
from hyprstream.vdb.entropy.classes import Classes
from hyprstream.vdb.entropy.varints import VarintReader, write_signed
from hyprstream.vdb.learned.layout import Layout
from hyprstream.vdb.learned.quantised import Codes, Pair, Single
from hyprstream.vdb.learned.scales import MAX_CODE

_WIDEST = 108  # the widest class that a prediction may name
_ZERO_PLACE = 12  # of scale 1


def codes_of(part: Pair | Single) -> Codes:
    """Return the codes of a part's scales."""
    return part.codes if isinstance(part, Pair) else np.array([part.code], np.int64)


def write_codes(codes: Sequence[Codes], step_code: int) -> tuple[int, bytes]:
    """Write the codes of all parts: each as its distance from the one before it in the part.

    The first is told by its distance from the step; all in units of their common divisor,
    the grain, which is returned.
    """
    together = np.concatenate([np.empty(0, np.int64), *codes])
    grain = gcd(*together.tolist()) or 1
    start = step_code // grain
    distances = [np.diff(part // grain, prepend=start) for part in codes]
    return grain, write_signed(np.concatenate([np.empty(0, np.int64), *distances]))


def read_codes(data: bytes, grain: int, step_code: int, counts: Sequence[int]) -> list[Codes]:
    """Read the codes of parts that have `counts` of them.

    Raises:
        CorruptGridError: There are more or fewer, or one is out of range.
    """
    reader = VarintReader(data)
    found = []
    for count in counts:
        distances = reader.signed(count)
        if np.abs(distances).max(initial=0) > 4 * MAX_CODE:
            raise CorruptGridError("a scale is out of range")
        codes = (np.cumsum(distances) + step_code // grain) * grain
        if np.abs(codes).max(initial=0) > MAX_CODE:
            raise CorruptGridError("a scale is out of range")
        found.append(codes)
    reader.finish()
    return found


def predicted_classes(layouts: Sequence[Layout], codes: Sequence[Codes], step_code: int) -> Classes:
    """Predict the class of each group of all parts, (G,).

    The scale of a component is about step / sqrt(size), and its integers have a root mean
    square of about size / (step sqrt(width)). Integers only, so that all machines agree.
    Groups of single tensors and of masked pairs are predicted to be zeros.
    """
    lengths = [layout.lengths() for layout in layouts]
    is_pair = [layout.kept is not None and not any(layout.masks) for layout in layouts]
    counts = [len(part) for part in lengths]
    # Four times the logarithm of the root of the width, and that of a component's size.
    widths = {width: (width**8).bit_length() - 1 for part in lengths for width in set(part)}
    roots = np.array([widths[width] for part in lengths for width in part], np.int64)
    sizes = [
        np.tile(part, 2) if pair else np.zeros(count, np.int64)
        for part, pair, count in zip(codes, is_pair, counts, strict=True)
    ]
    sixteenths = (step_code - 2 * np.concatenate([np.empty(0, np.int64), *sizes])) // 64 - roots
    places = np.minimum(np.maximum((sixteenths + 2) // 4 + _ZERO_PLACE, 0), _WIDEST)
    return np.where(np.repeat(is_pair, counts), 1 + 2 * places, 0).astype(np.uint8)
