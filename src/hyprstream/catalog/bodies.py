"""Reads long answers in large pieces.

httpx hands out 64 KiB at a time, each copied several times on its way through the parser; that
costs as much time as hashing. Of an answer whose length is announced, what follows the first
piece is nothing but content, and is read from the connection as it comes.
"""

from collections.abc import Iterator

import httpcore
import httpx

PIECE_BYTES = 1 << 20


def body_of(answer: httpx.Response, stall_s: float) -> Iterator[bytes]:
    """Read the body of an answer, which can then not be read in any other way.

    Args:
        answer: Without a `Content-Encoding`.
        stall_s: How long to wait for each piece.

    Raises:
        httpx.TransportError: The connection failed, or ended too early.
    """
    length = answer.headers.get("Content-Length", "")
    stream = answer.extensions.get("network_stream")
    if not length.isdigit() or "Transfer-Encoding" in answer.headers or stream is None:
        yield from answer.iter_raw()
        return
    rest_bytes = int(length)
    pieces = answer.iter_raw()
    first = next(pieces, b"")  # it includes all that the parser has read beyond the headers
    yield first
    rest_bytes -= len(first)
    if rest_bytes < PIECE_BYTES:
        yield from pieces
        return
    try:
        while rest_bytes > 0:
            piece = stream.read(min(PIECE_BYTES, rest_bytes), timeout=stall_s)
            if not piece:
                raise httpx.RemoteProtocolError(f"it ended {rest_bytes:,} bytes too early")
            yield piece
            rest_bytes -= len(piece)
    except httpcore.TimeoutException as error:
        raise httpx.ReadTimeout(str(error)) from error
    except httpcore.NetworkError as error:
        raise httpx.ReadError(str(error)) from error
