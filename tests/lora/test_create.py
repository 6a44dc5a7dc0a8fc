"""Fresh adapters: they add nothing, keep to their spec, and follow from their seed."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidAdapterError, InvalidSettingsError
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.kinds.tiny import Tiny
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import pack
from hyprstream.models.quant import DenseWeight
from tests.lora.adapters import CPU, dense, make_bank
from tests.models.reference import load_decoder, make_model, variants

LINEARS = {
    "layers.0.q_proj": (48, 40),
    "layers.0.v_proj": (24, 40),
    "layers.1.q_proj": (48, 40),
    "lm_head": (60, 40),
}
KINDS = ["low_rank", "sparse", "tiny"]


def matrices(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {path: torch.randn(shape, generator=generator) for path, shape in LINEARS.items()}


BASE = BaseLayers({path: DenseWeight(weight) for path, weight in matrices(1).items()})
GRADIENTS = matrices(2)


def spec(**fields) -> LoraSpec:
    return LoraSpec(**{"rank": 4, "alpha": 8, **fields})


def fresh(seed: int = 0, **fields):
    return create(spec(**fields), LINEARS, seed=seed, base=BASE, gradients=GRADIENTS)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    sparsity=st.sampled_from([0.0, 0.5, 0.9, 0.99, 0.999]),
    structure=st.sampled_from(["unstructured", "leaf"]),
    mask=st.sampled_from(["seed", "gradient", "magnitude"]),
    seed=st.integers(0, 2**40),
)
def test_a_fresh_adapter_adds_nothing_and_is_as_sparse_as_asked(
    kind, sparsity, structure, mask, seed
):
    fields = {"kind": kind, "sparsity": sparsity, "structure": structure, "mask": mask}
    weights = fresh(seed, **fields)
    assert weights.modules
    assert all(not dense(delta).any() for delta in weights.modules.values())
    tensors = list(pack(weights).values())
    num_leaves = 1 if structure == "unstructured" else 512
    if kind == "sparse":  # one budget for all layers, of which some may go empty
        total = sum(LINEARS[path][0] * 40 for path in list(LINEARS)[:3])
        active = sum(tensor.num_active for tensor in tensors)
        slack = 3 * num_leaves
        assert abs(active - total * (1 - sparsity)) <= slack
    else:
        for tensor in tensors:
            wanted = tensor.size * (1 - sparsity)
            assert abs(tensor.num_active - wanted) <= max(1, num_leaves)
    assert fresh(seed, **fields).fingerprint() == weights.fingerprint()
    make_bank(LINEARS, num_slots=1, max_rank=64).write(1, weights)


def test_a_is_uniform_as_peft_makes_it_and_differs_from_layer_to_layer():
    weights = fresh(rank=32)
    a = [delta.a for delta in weights.modules.values() if isinstance(delta, LowRank)]
    assert len(a) == 3
    bound = 1 / 40**0.5
    for tensor in a:
        assert float(tensor.abs().max()) <= bound
        assert float(tensor.std()) == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not torch.equal(a[0], a[2])
    assert not torch.equal(a[0], fresh(1, rank=32).modules["layers.0.q_proj"].tensors()["a"])


def test_a_seed_means_the_same_bits_everywhere():
    """Recorded once: whoever changes how seeds are used changes every seeded adapter."""
    digest = hashlib.sha256()
    for name, tensor in pack(fresh(7, sparsity=0.9)).items():
        digest.update(name.encode() + tensor.values.tobytes())
        assert tensor.indices is not None
        digest.update(tensor.indices.tobytes())
    assert digest.hexdigest() == (
        "90758ce08243fe4897e4a687d8349d431663155b1114ac1efe2ebf7f64a22ebc"
    )


def test_patterns_change_the_rank_of_layers():
    weights = fresh(rank_pattern={"v_proj": 2, "layers.1.q_proj": 7})
    ranks = {path: delta.rank for path, delta in weights.modules.items()}
    assert ranks == {"layers.0.q_proj": 4, "layers.0.v_proj": 2, "layers.1.q_proj": 7}


def test_a_gradient_mask_of_a_sparse_adapter_takes_the_steepest_elements_of_all_layers():
    weights = fresh(kind="sparse", sparsity=0.99, mask="gradient")
    paths = list(LINEARS)[:3]
    every = torch.cat([GRADIENTS[path].abs().flatten() for path in paths])
    limit = every.sort(descending=True).values[round(len(every) * 0.01) - 1]
    for path in paths:
        expected = (GRADIENTS[path].abs() >= limit).flatten().nonzero().flatten()
        delta = weights.modules.get(path)
        found = delta.mask.indices if isinstance(delta, Sparse) else torch.zeros(0)
        assert found.tolist() == expected.tolist()


def test_a_magnitude_mask_of_a_sparse_adapter_takes_the_largest_weights():
    weights = fresh(kind="sparse", sparsity=0.9, mask="magnitude", targets=("lm_head",))
    delta = weights.modules["lm_head"]
    assert isinstance(delta, Sparse)
    chosen = BASE.weight("lm_head").abs()[delta.mask.dense()]
    assert chosen.min() > BASE.weight("lm_head").abs()[~delta.mask.dense()].max()


def test_a_gradient_mask_of_a_low_rank_adapter_takes_the_steepest_of_b():
    weights = fresh(sparsity=0.9, mask="gradient", targets=("lm_head",))
    delta = weights.modules["lm_head"]
    assert isinstance(delta, LowRank)
    assert delta.b_mask is not None
    a = fresh(targets=("lm_head",)).modules["lm_head"].tensors()["a"].requires_grad_(False)
    b = torch.zeros(4, 60, requires_grad=True)
    ((a @ b).T * GRADIENTS["lm_head"]).sum().backward()  # a loss of this gradient for W
    assert b.grad is not None
    steep = b.grad.abs()
    assert steep[delta.b_mask.dense()].min() >= steep[~delta.b_mask.dense()].max()


def test_a_gradient_mask_of_a_tiny_adapter_takes_the_steepest_of_the_core():
    delta = fresh(kind="tiny", sparsity=0.5, mask="gradient").modules["layers.0.v_proj"]
    assert isinstance(delta, Tiny)
    assert delta.mask is not None
    core = torch.zeros(4, 4, requires_grad=True)
    change = (delta.basis.down @ core @ delta.basis.up).T
    (change * GRADIENTS["layers.0.v_proj"]).sum().backward()
    assert core.grad is not None
    steep = core.grad.abs()
    assert steep[delta.mask.dense()].min() >= steep[~delta.mask.dense()].max()


@pytest.mark.parametrize(
    "fields",
    [
        {"mask": "gradient", "sparsity": 0.9},
        {"mask": "gradient", "sparsity": 0.9, "kind": "sparse"},
        {"mask": "magnitude", "sparsity": 0.9, "kind": "sparse"},
        {"kind": "tiny"},
    ],
)
def test_what_a_spec_needs_and_was_not_handed_in_is_named(fields):
    with pytest.raises(InvalidSettingsError, match=r"gradient|base model"):
        create(spec(**fields), LINEARS)


def test_a_core_wider_than_its_layer_is_refused():
    with pytest.raises(InvalidAdapterError, match=r"\(24, 40\) has no singular basis of rank 25"):
        fresh(kind="tiny", rank=25, targets=("v_proj",))


def test_a_decoder_hands_out_the_weights_of_its_layers(tmp_path):
    make_model(variants("llama")["plain"]).save_pretrained(tmp_path)
    model = load_decoder(tmp_path)
    assert {path: weight.shape for path, weight in model.weights.items()} == model.linears
    x = torch.randn(3, model.config.width)
    path = "layers.0.self_attn.q_proj"
    base = BaseLayers(model.weights)
    torch.testing.assert_close(model.weights[path].matmul(x), x @ base.weight(path).T)
    weights = create(spec(kind="tiny"), model.linears, base=base)
    assert weights.max_rank == 4
    assert model.device == CPU
