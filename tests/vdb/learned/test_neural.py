"""The learned code as its users call it."""

import numpy as np
import pytest

from hyprstream.errors import (
    IncompatibleAdapterError,
    InvalidAdapterError,
    InvalidRequestError,
)
from hyprstream.vdb.codecs import neural
from hyprstream.vdb.learned import PROXY_SLOPE, Pair, Target, quantise
from hyprstream.vdb.learned.side import codes_of
from hyprstream.vdb.learned.source import read_source
from hyprstream.vdb.learned.update import round_update
from tests.vdb.adapters import (
    SEED,
    SEEDS,
    added,
    assert_same,
    full,
    low_rank,
    mixed,
    moved,
    relative_error,
)


@pytest.mark.parametrize("error", [0.002, 0.05, 0.15, 0.4])
@pytest.mark.parametrize("make", [low_rank, mixed])
def test_the_error_is_just_below_the_target(make, error):
    tensors = make(1)
    encoded = neural.encode(tensors, target=Target(error=error))
    measured = relative_error(tensors, neural.decode(encoded.data))
    assert measured == pytest.approx(encoded.report.relative_error, abs=1e-6)
    assert 0.9 * error < measured <= error


def test_a_larger_error_takes_fewer_bytes():
    sizes = [
        len(neural.encode(low_rank(2), target=Target(error=error)).data)
        for error in (0.01, 0.05, 0.15, 0.4)
    ]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > 2 * sizes[-1]


def test_one_step_for_all_is_better_than_one_rate_for_all():
    """Reverse water-filling: at equal bytes, against equal bits for every singular direction."""
    tensors = low_rank(3)
    encoded = neural.encode(tensors, target=Target(error=0.15))
    num_values = sum(tensor.size for tensor in tensors.values())
    bits = 8 * len(encoded.data) / num_values
    # The distortion-rate bound of normal numbers at this rate, which no code of factors beats.
    assert encoded.report.relative_error < np.sqrt(2) * 2.0**-bits


def test_no_low_rank_product_is_turned_around():
    """Directions have signs; the product has to come back with its own."""
    tensors = low_rank(4, num_layers=1)
    decoded = neural.decode(neural.encode(tensors, target=Target(error=0.01)).data)
    for true, got in zip(added(tensors), added(decoded), strict=True):
        np.testing.assert_allclose(got, true, atol=0.05 * np.abs(true).max())


@pytest.mark.parametrize("size_bytes", [3_000, 6_000, 12_000])
def test_a_size_is_kept_and_used(size_bytes):
    encoded = neural.encode(low_rank(5), target=Target(size_bytes=size_bytes))
    assert 0.93 * size_bytes < len(encoded.data) <= size_bytes


def test_a_size_that_no_step_reaches_is_an_error():
    with pytest.raises(InvalidRequestError, match="does not fit into 100 bytes"):
        neural.encode(low_rank(5), target=Target(size_bytes=100))


def test_a_callers_judgement_decides():
    tensors = low_rank(6)
    encoded = neural.encode(
        tensors, target=Target(is_good=lambda got: relative_error(tensors, got) < 0.07)
    )
    assert 0.06 < encoded.report.relative_error < 0.07


def test_a_judgement_that_nothing_satisfies_is_an_error():
    with pytest.raises(InvalidRequestError, match="not good enough"):
        neural.encode(low_rank(6), target=Target(is_good=lambda _: False))


@pytest.mark.parametrize(
    "wrong",
    [
        {"error": 0},
        {"error": 1.5},
        {"update_dead_zone": 0.4},
        {"size_bytes": 9, "is_good": lambda _: True},
    ],
)
def test_a_target_that_makes_no_sense_is_an_error(wrong):
    with pytest.raises(InvalidRequestError):
        Target(**wrong)


def test_an_adapter_that_adds_nothing_comes_back():
    tensors = {
        "x/low_rank/a": full(np.ones((70, 2))),
        "x/low_rank/b": full(np.zeros((2, 9))),
    }
    decoded = neural.decode(neural.encode(tensors).data)
    assert not added(decoded)[0].any()
    assert decoded["x/low_rank/a"].shape == (70, 2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_no_finite_number_is_an_error(value):
    with pytest.raises(InvalidAdapterError, match="x holds"):
        neural.encode({"x": full(np.array([1, value]))})


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_an_adapter_of_absurd_size_is_an_error(factor):
    with pytest.raises(InvalidAdapterError, match="too large or too small"):
        neural.encode({"x": full(np.ones(5) * factor)})


def test_a_seed_takes_the_place_of_a_mask():
    tensors = mixed(7)
    plain, seeded = (neural.encode(tensors, seeds=seeds) for seeds in (None, SEEDS))
    assert_same(neural.decode(seeded.data), neural.decode(plain.data))
    assert len(seeded.data) < len(plain.data) - 20


def test_a_seed_that_is_not_that_of_the_mask_is_an_error():
    with pytest.raises(InvalidAdapterError, match=f"not those of seed {SEED + 1}"):
        neural.encode(mixed(7), seeds=dict.fromkeys(SEEDS, SEED + 1))


def test_integers_come_back_as_they_were_made():
    quantised = quantise(mixed(8), 0.02)
    assert_same(neural.decode(neural.encode_quantised(quantised)), quantised.tensors())


@pytest.mark.parametrize("error", [0.05, 0.15, 0.4])
def test_the_rate_that_training_uses_is_about_that_of_the_stream(error):
    encoded = neural.encode(low_rank(20, num_layers=6), target=Target(error=error))
    bits = 0.0
    for part in neural.decode_quantised(encoded.data).parts.values():
        assert isinstance(part, Pair)
        for side in (part.p, part.q):
            squares = np.square(side, dtype=np.float64).mean(axis=1)
            bits += side.shape[1] / 2 * np.log2(1 + PROXY_SLOPE * squares).sum()
    assert bits == pytest.approx(8 * len(encoded.data), rel=0.2)


def chain(tensors, num_versions: int, share: float):
    """Versions, each told to the code with what was decoded of the one before."""
    parent = None
    for seed in range(num_versions):
        tensors = moved(tensors, seed, share)
        encoded = neural.encode(tensors, parent=parent)
        parent = neural.decode_quantised(encoded.data, parent=parent)
        yield tensors, encoded, parent


@pytest.mark.parametrize("make", [low_rank, mixed])
def test_versions_follow_one_another_without_drifting_off(make):
    for i, (tensors, encoded, decoded) in enumerate(chain(make(9), 12, 0.02)):
        assert encoded.report.is_update == (i > 0)
        measured = relative_error(tensors, decoded.tensors())
        assert measured == pytest.approx(encoded.report.relative_error, abs=1e-6)
        assert measured <= 1.2 * 0.15
        assert decoded.depth == i


def test_an_update_takes_a_small_share_of_a_key_frame():
    sizes = [len(encoded.data) for _, encoded, _ in chain(low_rank(10), 6, 0.01)]
    assert max(sizes[1:]) < sizes[0] / 5
    assert sizes[-1] < sizes[0] / 12


def test_a_narrower_dead_zone_keeps_more_of_a_move_in_more_bytes():
    first = low_rank(21)
    parent = neural.decode_quantised(neural.encode(first).data)
    later = moved(first, 1, 0.05)
    wide, narrow = (
        neural.encode(later, parent=parent, target=Target(update_dead_zone=zone)).report
        for zone in (0.9, 0.5)
    )
    assert wide.is_update
    assert narrow.is_update
    assert wide.size_bytes < narrow.size_bytes
    assert wide.relative_error > narrow.relative_error


def test_a_key_frame_comes_after_enough_updates():
    depths = [v.depth for _, _, v in chain(low_rank(11, num_layers=1, rank=2), 30, 0.003)]
    assert depths == [*range(neural.MAX_DEPTH + 1), *range(30 - neural.MAX_DEPTH - 1)]


def test_a_version_that_moved_far_is_a_key_frame():
    first = neural.encode(low_rank(12))
    parent = neural.decode_quantised(first.data)
    assert not neural.encode(low_rank(13), parent=parent).report.is_update


def test_a_version_of_another_form_is_a_key_frame():
    parent = neural.decode_quantised(neural.encode(low_rank(14)).data)
    for other in (low_rank(14, num_layers=2), low_rank(14, rank=6)):
        assert not neural.encode(other, parent=parent).report.is_update


def test_a_direction_that_is_new_gets_a_component_of_its_own():
    tensors = low_rank(15, rank=8)
    weak = dict(tensors)
    name = "layers.0.self_attn.q_proj/low_rank/b"
    rows = tensors[name].to_dense().copy()
    rows[0] = 0  # the strongest
    weak[name] = full(rows)
    parent = neural.decode_quantised(neural.encode(weak).data)
    update = round_update(read_source(tensors), parent, 0.7)
    decoded = neural.decode_quantised(neural.encode_quantised(update, parent=parent), parent=parent)
    part = "layers.0.self_attn.q_proj/low_rank"
    assert len(codes_of(decoded.parts[part])) == len(codes_of(parent.parts[part])) + 1
    assert relative_error(tensors, decoded.tensors()) < 0.2


def test_an_update_without_its_parent_is_an_error():
    (_, first, key), (_, second, _) = chain(low_rank(16), 2, 0.01)
    other = neural.decode_quantised(neural.encode(low_rank(17)).data)
    for parent in (None, other):
        with pytest.raises(IncompatibleAdapterError, match="not at hand"):
            neural.decode(second.data, parent=parent)
    assert_same(neural.decode(first.data, parent=other), key.tensors())


@pytest.mark.parametrize("change", ["fewer layers", "another rank", "other scales"])
def test_integers_of_another_form_are_no_update(change):
    parent = neural.decode_quantised(neural.encode(low_rank(18)).data)
    other = {
        "fewer layers": quantise(low_rank(18, num_layers=1), 0.1),
        "another rank": quantise(low_rank(18, rank=5), 0.1),
        "other scales": quantise(low_rank(19), 0.01),
    }[change]
    with pytest.raises(IncompatibleAdapterError, match="cannot be told as an update"):
        neural.encode_quantised(other, parent=parent)
