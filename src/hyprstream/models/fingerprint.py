"""What a model is, as two hashes: of what its configuration computes, and of its weights.

The weights are hashed whole: a sample of them would call two models the same that differ where
it did not look. Tensors are taken by name, so that neither the order in a file nor the number
of files matters, nor where they lie. Their number format does matter: a quantised model is
another model, for which an adapter's measurements do not hold. For the same reason a GGUF file
differs from the SafeTensors files that it was made from.

Hashing reads every byte once, on all processors, at about a gigabyte a second on each; the result
is kept for files that have not changed since, judged by path, length, inode and time of change.
"""

import hashlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, fields, is_dataclass
from functools import partial
from pathlib import Path

from hyprstream.files import storage, write_atomic
from hyprstream.models.checkpoint import Checkpoint
from hyprstream.models.checkpoint.mapping import FileState, MappedFile
from hyprstream.models.config import ModelConfig
from hyprstream.models.load import OpenModel
from hyprstream.refs import ModelFingerprint

# What a user may choose when loading, and what becomes of hidden states after the last layer.
_CHOSEN = frozenset({"context_length", "pooling", "normalize", "embedding_tokens"})
# A file that was changed again within the clock's grain would look unchanged: git's "racily clean".
_SETTLED_NS = 2_000_000_000
_MAX_CACHED_BYTES = 1 << 20  # a thousand shards in folders with long names
_SHA256 = re.compile(r"[0-9a-f]{64}")


def fingerprint(
    model: OpenModel, *, name: str | None = None, cache: Path | None = None
) -> ModelFingerprint:
    """Tell what a model is.

    Args:
        model: The model; its files must not change meanwhile, as always.
        name: What to call it; None calls it by its architecture.
        cache: A folder for what was hashed before; None hashes anew.

    Raises:
        StorageFullError: There is no room in the cache.
    """
    return ModelFingerprint(
        name=name or model.config.architecture,
        config_sha256=config_sha256(model.config),
        weights_sha256=_cached(model.checkpoint, cache),
    )


def config_sha256(config: ModelConfig) -> str:
    """Hash what a configuration says about computing.

    Fields that have their default are left out, so that one that is added later to describe
    other models leaves the hash of these as it is.
    """
    said = _said(config)
    assert isinstance(said, dict)
    kept = {key: value for key, value in said.items() if key not in _CHOSEN}
    text = json.dumps(kept, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Hash every tensor: its name, shape, number format and bytes, in the order of names."""
    names = sorted(checkpoint.names())
    total = hashlib.sha256()
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashing does not hold the interpreter
        for name, content in zip(names, pool.map(partial(_hash, checkpoint), names), strict=True):
            info = checkpoint.info(name)
            # JSON, so that no name can be mistaken for the end of another.
            total.update(json.dumps([name, info.kind, info.shape, content]).encode() + b"\n")
    return total.hexdigest()


def _hash(checkpoint: Checkpoint, name: str) -> str:
    """Hash the bytes of one tensor, and let go of the memory that they took."""
    digest = hashlib.sha256(checkpoint.blocks(name).flatten().numpy().data).hexdigest()
    checkpoint.release(name)
    return digest


def _said(value: object) -> object:
    """Turn dataclasses, tuples and sets into what JSON knows, without fields at their default."""
    if is_dataclass(value):
        pairs = ((field, getattr(value, field.name)) for field in fields(value))
        return {field.name: _said(part) for field, part in pairs if part != field.default}
    if isinstance(value, frozenset):
        return sorted(value)
    if isinstance(value, tuple):
        return [_said(part) for part in value]
    return value


def _cached(checkpoint: Checkpoint, cache: Path | None) -> str:
    if cache is None:
        return weights_sha256(checkpoint)
    key = json.dumps([[str(mapped.file.absolute()), *astuple(mapped.state)]
                      for mapped in checkpoint.files])  # fmt: skip
    file = cache / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
    known = _read(file, key)
    if known is not None:
        return known
    newest_ns = time.time_ns() - _SETTLED_NS
    made = weights_sha256(checkpoint)
    if all(_is_settled(mapped, newest_ns) for mapped in checkpoint.files):
        with storage(cache):
            cache.mkdir(parents=True, exist_ok=True)
            entry = {"files": key, "weights_sha256": made}
            write_atomic(file, json.dumps(entry).encode(), scratch=cache)
    return made


def _is_settled(mapped: MappedFile, newest_ns: int) -> bool:
    """Tell whether a file is what it was when it was mapped, and will look so only if it is."""
    try:
        state = FileState.of(mapped.file)
    except OSError:
        return False
    return state == mapped.state and state.modified_ns < newest_ns


def _read(file: Path, key: str) -> str | None:
    """Look up what was kept for files; None where that is missing or was made by no one here."""
    try:
        content = file.read_bytes()[:_MAX_CACHED_BYTES]
        entry = json.loads(content)
        known = entry["weights_sha256"] if entry["files"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return known if isinstance(known, str) and _SHA256.fullmatch(known) else None
