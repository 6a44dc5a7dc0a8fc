"""Adapters of every kind under training on a whole model, which itself stays as it is."""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F

from hyprstream.lora.bank import SummedView
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.gradients import WeightGradients
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.models.attention import PackedAttention
from hyprstream.models.decoder import Decoder
from hyprstream.models.forward import ForwardBatch, LoraView
from tests.lora.adapters import CPU, make_bank, packed_logits
from tests.models.reference import load_decoder, make_model, variants

IDS = torch.tensor([5, 9, 5, 9, 17, 5, 9, 5, 9, 17])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("training")
    make_model(variants("qwen3_moe")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def loss_of(model: Decoder, view: LoraView | None) -> torch.Tensor:
    batch = ForwardBatch(
        token_ids=IDS[:-1],
        positions=torch.arange(len(IDS) - 1),
        attention=PackedAttention(model.config.attention, [len(IDS) - 1]),
        lora=view,
    )
    return F.cross_entropy(model.logits(model.forward(batch), view), IDS[1:])


def gradients_of(model: Decoder, view: LoraView | None = None) -> dict[str, torch.Tensor]:
    watch = WeightGradients(model.linears, CPU)
    loss_of(model, watch if view is None else SummedView([view, watch])).backward()
    return watch.sums


@pytest.mark.parametrize(
    "fields",
    [
        {"kind": "low_rank"},
        {"kind": "low_rank", "sparsity": 0.5},
        {"kind": "sparse", "sparsity": 0.95, "mask": "gradient"},
        {"kind": "sparse", "sparsity": 0.9, "mask": "magnitude", "structure": "leaf"},
        {"kind": "tiny"},
    ],
    ids=lambda fields: "-".join(str(value) for value in fields.values()),
)
def test_training_lowers_the_loss_and_the_bank_serves_what_was_trained(model, fields):
    paths = [path for path in model.linears if "proj" in path]
    spec = LoraSpec(rank=4, alpha=4, targets=tuple(paths), **fields)
    weights = create(
        spec, model.linears, base=BaseLayers(model.weights), gradients=gradients_of(model)
    )
    lora = TrainableLora(
        weights, device=CPU, scales={path: spec.scale_of(path) for path in weights.modules}
    )
    optimizer = torch.optim.Adam(lora.parameters().values(), lr=0.02)
    losses = []
    for _ in range(8):
        loss = loss_of(model, lora)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[0] == pytest.approx(loss_of(model, None).item())
    assert all(later < earlier for earlier, later in pairwise(losses))

    bank = make_bank(model.linears, num_slots=1, max_rank=32)
    bank.write(1, lora.snapshot())
    served = packed_logits(model, [IDS], bank.view([1] * len(IDS)))[0]
    trained = packed_logits(model, [IDS], lora)[0]
    torch.testing.assert_close(served, trained, atol=1e-4, rtol=1e-4)


def test_the_gradients_of_weights_are_those_of_sparse_adapters_on_all_elements(model):
    """A sparse adapter without sparsity is W's own gradient, by way of another product."""
    spec = LoraSpec(rank=1, alpha=1, kind="sparse", targets=tuple(model.linears))
    weights = create(spec, model.linears)
    lora = TrainableLora(weights, device=CPU)
    loss_of(model, lora).backward()
    sums = gradients_of(model)
    num_seen = 0
    for path, delta in weights.modules.items():
        assert isinstance(delta, Sparse)
        found = lora.parameters()[f"{path}/sparse/delta"].grad
        if found is None:  # no token was sent to this expert
            assert not sums[path].any()
            continue
        num_seen += 1
        torch.testing.assert_close(found.view(delta.shape), sums[path], atol=1e-6, rtol=1e-4)
    assert num_seen > len(sums) / 2
