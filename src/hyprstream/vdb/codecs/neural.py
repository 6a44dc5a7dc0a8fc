"""The learned code: few bits for what matters, none for what does not. Lossy, to float32.

Singular directions, one step for the whole adapter, entropy coding with exact integers; with
a parent, the difference from it. The format and what it measures: docs/design/codec.md.
`encode` needs nothing but the adapter; `encode_quantised` takes what was trained through
rounding. Decoded values have the same bits on every machine.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from hyprstream.errors import IncompatibleAdapterError, InvalidAdapterError
from hyprstream.vdb.codecs import Encoded, Report
from hyprstream.vdb.learned.quantised import Quantised
from hyprstream.vdb.learned.rate import Target, choose
from hyprstream.vdb.learned.reading import MAX_VALUES, read
from hyprstream.vdb.learned.rounding import relative_error
from hyprstream.vdb.learned.source import Source, read_source
from hyprstream.vdb.learned.update import round_update
from hyprstream.vdb.learned.writing import write_key, write_update
from hyprstream.vdb.tensors import SparseTensor

LOSSLESS = False

MAX_DEPTH = 24
"""Updates after which a key frame comes, so that reading a version stays cheap."""

_MAX_SHARE = 0.5  # of a key frame, that an update may take
_MAX_WORSE = 1.2  # than a key frame, that the error of an update may be


def encode(
    tensors: Mapping[str, SparseTensor],
    *,
    target: Target | None = None,
    parent: Quantised | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Encoded:
    """Code an adapter: as an update of its parent where that is cheaper, else by itself.

    Args:
        tensors: The adapter. Names that end in low_rank/a and low_rank/b are a pair.
        target: What may be lost, or how much room there is. An update keeps its parent's
            step, and is taken if it comes close to the error of a key frame.
        parent: What `decode_quantised` returned of an earlier version.
        seeds: By name of a tensor, the seed its active elements were drawn from.

    Raises:
        InvalidAdapterError: A value is no finite number or too large; a seed is not that of
            its mask.
        InvalidRequestError: No step reaches the target.
    """
    source, target = read_source(tensors, seeds), target or Target()
    quantised = choose(source, target)
    data, error = write_key(quantised), relative_error(source, quantised)
    update = _update(source, target, parent, _Limits(_MAX_SHARE * len(data), _MAX_WORSE * error))
    if update is not None:
        data, error = update
    report = Report(
        num_values=sum(tensor.size for tensor in tensors.values()),
        size_bytes=len(data),
        relative_error=error,
        is_update=update is not None,
    )
    return Encoded(data=data, report=report)


def encode_quantised(quantised: Quantised, *, parent: Quantised | None = None) -> bytes:
    """Code integers as they are, or their differences from the parent's.

    Raises:
        IncompatibleAdapterError: They are not of the parent's form and scales.
    """
    return write_key(quantised) if parent is None else write_update(quantised, parent)


def decode(
    data: bytes, *, parent: Quantised | None = None, max_values: int = MAX_VALUES
) -> dict[str, SparseTensor]:
    """Return the adapter that a stream holds.

    Args:
        data: The stream; it need not be sound.
        parent: For an update, what `decode_quantised` returned of its parent.
        max_values: How many numbers the adapter may have.

    Raises:
        UnsupportedCodecError: It is of a version that is not known here.
        IncompatibleAdapterError: It is an update of a version that was not given.
        CorruptGridError: It is no stream of this code, damaged, or larger than allowed.
    """
    return decode_quantised(data, parent=parent, max_values=max_values).tensors()


def decode_quantised(
    data: bytes, *, parent: Quantised | None = None, max_values: int = MAX_VALUES
) -> Quantised:
    """Return the adapter as integers and scales, the parent of updates.

    Raises:
        UnsupportedCodecError: As `decode`.
        IncompatibleAdapterError: As `decode`.
        CorruptGridError: As `decode`.
    """
    return read(data, parent, max_values=max_values)


@dataclass(frozen=True, slots=True)
class _Limits:
    """What an update has to stay within to be taken."""

    size_bytes: float
    error: float


def _update(
    source: Source, target: Target, parent: Quantised | None, limits: _Limits
) -> tuple[bytes, float] | None:
    """Return stream and error of an update, or None if a key frame is the better choice."""
    if parent is None or parent.depth >= MAX_DEPTH:
        return None
    try:
        moved = round_update(source, parent, target.update_dead_zone)
    except (IncompatibleAdapterError, InvalidAdapterError):
        return None  # the adapter has changed its form, or moved too far
    data, error = write_update(moved, parent), relative_error(source, moved)
    close = error <= limits.error if target.is_good is None else target.is_good(moved.tensors())
    return (data, error) if close and len(data) <= limits.size_bytes else None
