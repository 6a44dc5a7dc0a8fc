"""The stream is what docs/design/codec.md says, and old streams stay readable."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from hyprstream.vdb.codecs import neural
from hyprstream.vdb.learned.layout import Layout
from hyprstream.vdb.learned.quantised import Quantised
from hyprstream.vdb.learned.rate import Target
from hyprstream.vdb.learned.scales import PER_OCTAVE, scale_codes, scales
from hyprstream.vdb.learned.side import codes_of
from tests.vdb.adapters import SEEDS, mixed, moved
from tests.vdb.learned.plain_reader import read_key, read_update

GOLDEN = Path(__file__).parents[2] / "golden" / "codec"


def assert_equal(plain: list[dict], read: Quantised) -> None:
    assert [part["name"] for part in plain] == list(read.parts)
    for part, (name, other) in zip(plain, read.parts.items(), strict=True):
        assert part["codes"] == codes_of(other).tolist()
        layout = Layout.of(name, other)
        assert part["groups"] == [group.tolist() for group in layout.groups(other)]
        for mask, known in zip(part["masks"], layout.masks, strict=True):
            assert mask == (None if known is None else known.indices.tolist())


@pytest.mark.parametrize("error", [0.003, 0.15, 0.6])
def test_a_reader_made_from_the_page_reads_the_same(error):
    tensors = mixed(1)
    key = neural.encode(tensors, target=Target(error=error), seeds=SEEDS)
    parent = neural.decode_quantised(key.data)
    step, parts = read_key(key.data)
    assert step == parent.step_code
    assert_equal(parts, parent)
    later = moved(tensors, 2, 0.03)
    update = neural.encode(later, target=Target(error=error), parent=parent, seeds=SEEDS)
    if update.report.is_update:
        read = neural.decode_quantised(update.data, parent=parent)
        assert_equal(read_update(update.data, step, parts), read)
    else:
        assert error != 0.15, "of a usual error there are updates"


def golden() -> tuple[bytes, bytes, dict[str, str]]:
    files = (GOLDEN / name for name in ("key.hyrd", "update.hyrd"))
    key, update = (file.read_bytes() for file in files)
    return key, update, json.loads((GOLDEN / "sha256.json").read_text())


def sha256(read: Quantised) -> str:
    """Hash the bits of all decoded tensors, and which elements are active."""
    digest = hashlib.sha256()
    for name, tensor in read.tensors().items():
        digest.update(f"{name} {tensor.shape}".encode())
        digest.update(tensor.values.astype("<f4").tobytes())
        digest.update(b"" if tensor.indices is None else tensor.indices.astype("<i8").tobytes())
    return digest.hexdigest()


def test_streams_of_the_first_version_are_read_to_the_same_bits():
    key, update, expected = golden()
    parent = neural.decode_quantised(key)
    assert sha256(parent) == expected["key"]
    assert sha256(neural.decode_quantised(update, parent=parent)) == expected["update"]


def test_scales_are_powers_of_two_to_a_bit():
    codes = np.arange(-3 * PER_OCTAVE, 3 * PER_OCTAVE)
    true = 2.0 ** (codes / PER_OCTAVE)
    np.testing.assert_allclose(scales(codes), true, rtol=2**-24)
    np.testing.assert_array_equal(scale_codes(true), codes)
    assert (scale_codes(true, grain=8) % 8 == 0).all()
