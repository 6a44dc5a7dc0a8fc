import pytest
import torch

from hyprstream.errors import InvalidAdapterError, UnsupportedError
from hyprstream.lora.delta import Delta
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.weights import LoraWeights, combine
from tests.lora.adapters import dense, random_adapter, random_low_rank
from tests.lora.dense_kind import DenseDelta

LINEARS = {"layers.0.q_proj": (6, 4), "layers.0.v_proj": (3, 4)}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_weights_do_not_change_with_what_they_were_made_from():
    a, b = torch.ones(4, 2), torch.ones(2, 6)
    delta = LowRank(a, b)
    a.zero_()
    b.zero_()
    assert delta.a.sum() == 8
    assert delta.b.sum() == 12


def test_size_and_rank_are_those_of_the_modules():
    weights = random_adapter(LINEARS, [2, 5], seed=0)
    assert weights.max_rank == 5
    assert weights.size_bytes == 4 * (2 * (6 + 4) + 5 * (3 + 4))
    assert LoraWeights({}).max_rank == 0


@pytest.mark.parametrize(
    ("a", "b", "problem"),
    [
        (torch.ones(4, 2), torch.ones(3, 6), r"\(4, 2\) and B \(3, 6\)"),
        (torch.ones(4), torch.ones(4, 6), r"\(4,\)"),
        (torch.ones(4, 0), torch.ones(0, 6), r"\(4, 0\)"),
        (torch.ones(4, 2), torch.ones(2, 6, dtype=torch.int8), "B holds int8"),
        (torch.ones(4, 2, dtype=torch.float64), torch.ones(2, 6), "A holds float64"),
        (torch.ones(4, 2), torch.full((2, 6), float("nan")), "B holds a value"),
        (torch.full((4, 2), float("inf")), torch.ones(2, 6), "A holds a value"),
    ],
)
def test_matrices_that_cannot_be_an_adapter_are_refused(a, b, problem):
    with pytest.raises(InvalidAdapterError, match=problem):
        LowRank(a, b)


def test_equal_content_has_one_fingerprint_however_it_is_stored():
    first, second = random_adapter(LINEARS, [2], 1), random_adapter(LINEARS, [2], 1)
    turned = LoraWeights(
        {
            path: LowRank(delta.a.T.contiguous().T, delta.b)
            for path, delta in reversed(list(second.modules.items()))
            if isinstance(delta, LowRank)
        }
    )
    assert first.fingerprint() == turned.fingerprint()
    assert len(first.fingerprint()) == 64


def test_whatever_differs_changes_the_fingerprint():
    delta = random_low_rank((6, 4), 2, generator())
    nudged = delta.b.clone()
    nudged[0, 0] = nudged[0, 0].nextafter(torch.tensor(9.0))
    minus_zero = LowRank(delta.a, torch.full((2, 6), -0.0))
    contents: list[dict[str, Delta]] = [
        {},
        {"p": delta},
        {"q": delta},
        {"p": LowRank(delta.a, nudged)},
        {"p": LowRank(delta.a, delta.b.bfloat16())},
        {"p": LowRank(delta.a.reshape(2, 4).T, delta.b)},
        {"p": LowRank(delta.a, torch.zeros(2, 6))},
        {"p": minus_zero},
        {"p": delta, "q": delta},
        {"p": DenseDelta(delta.a)},
    ]
    assert len({LoraWeights(modules).fingerprint() for modules in contents}) == len(contents)


def test_a_combination_adds_the_weighted_sum_of_what_its_parts_add():
    first = random_adapter(LINEARS, [2, 3], seed=1)
    second = random_adapter({"layers.0.v_proj": (3, 4)}, [4], seed=2)
    both = combine([(first, 0.3), (second, -2.0)])
    assert both.modules.keys() == LINEARS.keys()
    for path, (outputs, inputs) in LINEARS.items():
        expected = torch.zeros(outputs, inputs, dtype=torch.float64)
        for weights, factor in ((first, 0.3), (second, -2.0)):
            if path in weights.modules:
                expected += factor * dense(weights.modules[path])
        torch.testing.assert_close(dense(both.modules[path]), expected, atol=1e-7, rtol=1e-6)
    assert both.modules["layers.0.v_proj"].rank == 3 + 4


def test_a_factor_does_not_round_half_precision_weights():
    delta = random_low_rank((6, 4), 2, generator(), dtype=torch.bfloat16)
    scaled = LowRank.combine([(delta, 1 / 3)])
    torch.testing.assert_close(dense(scaled), dense(delta) / 3, atol=0, rtol=1e-6)


def test_a_part_alone_is_combined_without_a_change():
    weights = random_adapter(LINEARS, [2], seed=1)
    assert combine([(weights, 1.0)]).fingerprint() == weights.fingerprint()


def test_parts_of_different_models_or_kinds_are_not_combined():
    low_rank = LoraWeights({"p": random_low_rank((6, 4), 2, generator())})
    wider = LoraWeights({"p": random_low_rank((8, 4), 2, generator())})
    other = LoraWeights({"p": DenseDelta(torch.zeros(6, 4))})
    with pytest.raises(InvalidAdapterError, match=r"\(6, 4\) and \(8, 4\)"):
        combine([(low_rank, 1.0), (wider, 1.0)])
    with pytest.raises(UnsupportedError, match="p as dense and low_rank"):
        combine([(low_rank, 1.0), (other, 1.0)])
