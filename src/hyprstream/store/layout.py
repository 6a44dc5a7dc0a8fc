"""How the tensors of a version become its payload, and come back.

A payload is always a file of one NanoVDB grid. That of `raw` is the adapter itself; those of
other codes hold their stream behind a grid without voxels. A payload of the learned code may
say only what differs from that of its parent. Nothing in a payload is believed. No torch.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from hyprstream.errors import CorruptGridError
from hyprstream.refs import VersionId
from hyprstream.store.manifest import Manifest
from hyprstream.store.store import AdapterStore
from hyprstream.vdb import codecs
from hyprstream.vdb.codecs import Report, neural, raw
from hyprstream.vdb.learned.quantised import Quantised
from hyprstream.vdb.learned.rate import Target
from hyprstream.vdb.nanovdb.files import open_file, write_bytes
from hyprstream.vdb.nanovdb.view import GridView
from hyprstream.vdb.opaque import opaque_data, opaque_grid
from hyprstream.vdb.tensors import SparseTensor

RAW, NEURAL = "raw", "neural"

_STREAM = "stream"  # name of the channel that a coded stream is
_MAX_STREAM_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """A payload.

    Attributes:
        payload: The file.
        report: What coding came to; its size is that of the stream.
    """

    payload: bytes
    report: Report


def encode(
    tensors: Mapping[str, SparseTensor],
    codec: str,
    *,
    target: Target | None = None,
    parent: Quantised | None = None,
    seeds: Mapping[str, int] | None = None,
) -> Encoded:
    """Write tensors in a code.

    Args:
        tensors: The adapter.
        codec: Name of the code.
        target: For the learned code, what may be lost.
        parent: For the learned code, the version that an update may be written from.
        seeds: By tensor, the seed that its active elements were drawn from (`neural.encode`).

    Raises:
        UnsupportedCodecError: There is no such code.
        InvalidAdapterError: The code cannot hold these values.
        InvalidRequestError: The target cannot be reached.
    """
    if codec == NEURAL:
        done = neural.encode(tensors, target=target, parent=parent, seeds=seeds)
    else:
        done = codecs.load(codec).encode(tensors)
    payload = done.data if codec == RAW else write_bytes([opaque_grid({_STREAM: done.data})], "zip")
    return Encoded(payload=payload, report=done.report)


def read(store: AdapterStore, version: VersionId) -> dict[str, SparseTensor]:
    """Return the tensors of a version.

    Raises:
        VersionNotFoundError: There is no such version.
        ChecksumMismatchError: A payload is not the one that was committed.
        CorruptGridError: A payload is not what its code writes.
        UnsupportedError: A code, or its version, is not known here.
        IncompatibleAdapterError: An update is not of the parent that its manifest names.
    """
    manifest = store.manifest(version)
    if manifest.codec == NEURAL:
        return read_quantised(store, version).tensors()
    with store.open(version) as file:
        if manifest.codec == RAW:
            return raw.tensors_of(open_file(file), _named(version))
        return codecs.load(manifest.codec).decode(_stream(file, version))


def read_quantised(store: AdapterStore, version: VersionId) -> Quantised:
    """Return a version in the learned code as what an update can be written from.

    Raises:
        HyprstreamError: As `read`; CorruptGridError also if it is in another code, or at the
            end of too many updates.
    """
    quantised: Quantised | None = None
    with ExitStack() as held:  # what an update needs must not go while it is read
        chain: list[tuple[VersionId, Path]] = []
        for link, manifest in _links(store, version):
            if manifest.codec != NEURAL:
                raise CorruptGridError("its code is not that of its updates", _named(link))
            chain.append((link, held.enter_context(store.open(link))))
        for link, file in reversed(chain):
            quantised = neural.decode_quantised(_stream(file, link), parent=quantised)
    assert quantised is not None, "a chain has at least one link"
    return quantised


def _links(store: AdapterStore, version: VersionId) -> Sequence[tuple[VersionId, Manifest]]:
    """List a version and what it needs, down to the one that needs nothing."""
    links = [(version, store.manifest(version))]
    while links[-1][1].needs_parent:
        if len(links) > neural.MAX_DEPTH:
            raise CorruptGridError(f"over {neural.MAX_DEPTH} updates lead to it", _named(version))
        parent = links[-1][1].parent
        assert parent is not None, "a manifest that needs a parent names one"
        links.append((VersionId(parent), store.manifest(VersionId(parent))))
    return links


def _stream(file: Path, version: VersionId) -> bytes:
    grid = _only(open_file(file, max_bytes=_MAX_STREAM_BYTES), version)
    stream = opaque_data(grid).get(_STREAM)
    if stream is None or grid.num_voxels:
        raise CorruptGridError("it holds no coded stream", _named(version))
    return stream


def _only(grids: Sequence[GridView], version: VersionId) -> GridView:
    if len(grids) != 1:
        raise CorruptGridError(f"it holds {len(grids)} grids instead of one", _named(version))
    return grids[0]


def _named(version: VersionId) -> str:
    return f"the payload of version {version[:12]}"
