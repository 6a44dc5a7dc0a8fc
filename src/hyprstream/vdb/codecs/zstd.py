"""Every bit kept, in fewer bytes: first bytes, second bytes and so on apart, and Zstandard.

The magic "HYRZ" and the version 1 stand before one Zstandard frame of a `vdb.listing`. How
much larger that is, is announced in the frame and limited.
"""

from collections.abc import Mapping

import zstandard

from hyprstream.errors import CorruptGridError, UnsupportedCodecError
from hyprstream.vdb import listing
from hyprstream.vdb.codecs import Encoded, measure
from hyprstream.vdb.tensors import SparseTensor

LOSSLESS = True

MAX_BYTES = 1 << 32
"""What a stream may decompress to, unless the caller says otherwise."""

_PREFIX = b"HYRZ\x01"
_LEVEL = 12  # above it, a percent less takes many times as long


def encode(tensors: Mapping[str, SparseTensor]) -> Encoded:
    """Compress an adapter."""
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    data = _PREFIX + compressor.compress(listing.write(tensors))
    return Encoded(data=data, report=measure(tensors, data))


def decode(data: bytes, *, max_bytes: int = MAX_BYTES) -> dict[str, SparseTensor]:
    """Return the adapter.

    Raises:
        UnsupportedCodecError: The stream is of a version that is not known here.
        CorruptGridError: The bytes are no such stream, damaged, or larger than allowed.
    """
    if data[:4] != _PREFIX[:4] or len(data) < len(_PREFIX):
        raise CorruptGridError("it does not begin as a compressed list of tensors")
    if data[4] != _PREFIX[4]:
        raise UnsupportedCodecError(
            f"version {data[4]} of the zstd code is not supported",
            hint=f"This program reads version {_PREFIX[4]}; update it.",
        )
    frame = data[len(_PREFIX) :]
    try:
        if not 0 <= zstandard.frame_content_size(frame) <= max_bytes:
            raise CorruptGridError(f"it would decompress to more than {max_bytes} bytes")
        content = zstandard.ZstdDecompressor().decompress(frame, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise CorruptGridError("it cannot be decompressed") from error
    return listing.read(content)
