"""The trainer on tiny models: portions, failures, moves of masks, the pull towards the base."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    IncompatibleAdapterError,
    InvalidRequestError,
    InvalidSettingsError,
    NonFiniteTrainingError,
)
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.kinds.low_rank import LowRank
from hyprstream.lora.kinds.sparse import Sparse
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.trainable import TrainableLora
from hyprstream.lora.weights import LoraWeights
from hyprstream.refs import AdapterName
from hyprstream.train import loss as loss_module
from hyprstream.train.backward import Objective, backward
from hyprstream.train.collate import collate
from hyprstream.train.config import TrainConfig
from hyprstream.train.fit import batches, fit
from hyprstream.train.sample import Sample
from hyprstream.train.trainer import Trainer
from tests.lora.adapters import CPU, packed_logits, random_adapter
from tests.models.reference import load_decoder, make_model, variants
from tests.train.random_samples import SAMPLES, SPEC, TARGETS

CONFIG = TrainConfig(learning_rate=1e-2)
A, B = AdapterName("a"), AdapterName("b")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trainer")
    make_model(variants("llama")["plain"]).save_pretrained(folder)
    return load_decoder(folder)


def start(model, spec: LoraSpec = SPEC, seed: int = 1) -> LoraWeights:
    return create(spec, model.linears, seed=seed, base=BaseLayers(model.weights))


def after_steps(model, config: TrainConfig, portions, spec: LoraSpec = SPEC, num_steps: int = 2):
    """The adapter after steps whose samples come in portions."""
    trainer = Trainer(model)
    trainer.open(A, start(model, spec), spec=spec, config=config)
    reports = []
    for _ in range(num_steps):
        for portion in portions:
            trainer.accumulate(A, portion)
        reports.append(trainer.apply(A))
    return trainer.snapshot(A), reports


def assert_close(ours: LoraWeights, theirs: LoraWeights, atol: float = 1e-4) -> None:
    assert ours.modules.keys() == theirs.modules.keys()
    for path, delta in theirs.modules.items():
        torch.testing.assert_close(ours.modules[path].dense(), delta.dense(), atol=atol, rtol=1e-3)


@pytest.mark.parametrize("pull", [0.0, 0.7])
def test_portions_and_batches_make_no_difference(model, pull):
    config = dataclasses.replace(CONFIG, base_pull=pull)
    whole, (report, _) = after_steps(model, config, [SAMPLES])
    one_by_one, _ = after_steps(model, config, [[sample] for sample in SAMPLES])
    small = dataclasses.replace(config, batch_tokens=30)
    in_batches, (same, _) = after_steps(model, small, [SAMPLES[:2], SAMPLES[2:]])
    assert_close(one_by_one, whole)
    assert_close(in_batches, whole)
    assert same.loss == pytest.approx(report.loss, rel=1e-5)
    assert same.grad_norm == pytest.approx(report.grad_norm, rel=1e-4)
    assert same.num_tokens == report.num_tokens == sum(len(s.token_ids) - 1 for s in SAMPLES)


def test_logits_come_in_pieces_and_change_nothing(model, monkeypatch):
    whole, (report, _) = after_steps(model, CONFIG, [SAMPLES])
    monkeypatch.setattr(loss_module, "_CHUNK_VALUES", 97 * 4)
    pieces, (same, _) = after_steps(model, CONFIG, [SAMPLES])
    assert same.loss == pytest.approx(report.loss, rel=1e-6)
    assert_close(pieces, whole)
    assert max(c.stop - c.start for c in loss_module.row_chunks(11, 97)) == 4


def test_recomputing_keeps_little_for_the_backward_pass(model):
    lora = TrainableLora(start(model), device=CPU)
    packed = collate(SAMPLES, model.config, CPU)

    def kept(*, recompute: bool) -> int:
        sizes = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            hidden = model.forward(packed.batch(model.config, lora, recompute=recompute))
        assert hidden.requires_grad
        return sum(sizes.values())

    assert kept(recompute=True) < 0.3 * kept(recompute=False)


def test_the_gradient_of_the_pull_is_that_of_the_divergence_of_whole_distributions(model):
    weights = random_adapter({p: model.linears[p] for p in start(model).modules}, [3], seed=2)
    sample = SAMPLES[1]
    lora = TrainableLora(weights, device=CPU)
    sums = backward(
        model, lora, collate([sample], model.config, CPU), Objective(loss=0.0, pull=1.0)
    )
    found = {name: p.grad for name, p in lora.parameters().items()}

    plain = TrainableLora(weights, device=CPU)
    ids = torch.tensor(sample.token_ids[:-1])
    packed = collate([sample], model.config, CPU)
    base = packed_logits(model, [ids], None)[0].clone().double().softmax(-1)
    adapted = model.logits(model.forward(packed.batch(model.config, plain)), plain).double()
    kl = (base * (base.log() - adapted.softmax(-1).log())).sum(-1)[packed.rows].sum()
    kl.backward()
    assert sums.loss == 0
    assert sums.pull == pytest.approx(kl.item(), rel=1e-4)
    assert sums.pull > 0
    for name, parameter in plain.parameters().items():
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-3)


def test_a_pull_on_anchors_holds_the_adapter_where_the_base_is(model):
    lessons, anchors = SAMPLES[:2], SAMPLES[3:]

    def divergence(pull: float) -> tuple[float, float]:
        trainer = Trainer(model)
        config = TrainConfig(learning_rate=2e-2, base_pull=pull)
        trainer.open(A, start(model), spec=SPEC, config=config)
        reports = []
        for _ in range(12):
            trainer.accumulate(A, lessons, anchors=anchors)
            reports.append(trainer.apply(A))
        report = reports[-1]
        ids = torch.tensor(anchors[0].token_ids)
        view = TrainableLora(trainer.snapshot(A), device=CPU)
        before, after = (packed_logits(model, [ids], v)[0].log_softmax(-1) for v in (None, view))
        moved = F.kl_div(after, before, reduction="batchmean", log_target=True).item()
        assert (report.pull > 0) == (pull > 0)
        return moved, report.loss

    (free, _), (held, loss) = divergence(0.0), divergence(3.0)
    assert held < free / 2
    untouched = Trainer(model).evaluate(None, lessons)
    assert loss < 0.8 * sum(untouched) / len(untouched)


@pytest.mark.parametrize("kind", ["adapter", "base"])
def test_evaluation_gives_each_sample_the_mean_loss_of_its_tokens(model, kind):
    weights = None
    if kind == "adapter":
        weights = random_adapter({p: model.linears[p] for p in start(model).modules}, [3], seed=2)
    view = None if weights is None else TrainableLora(weights, device=CPU)
    trainer = Trainer(model)
    with torch.inference_mode():  # as on a thread that serves
        found = trainer.evaluate(weights, SAMPLES)
        assert trainer.evaluate(weights, SAMPLES, batch_tokens=29) == pytest.approx(found)
    for sample, loss in zip(SAMPLES, found, strict=True):
        ids = torch.tensor(sample.token_ids)
        logits = packed_logits(model, [ids], view)[0]
        losses = F.cross_entropy(logits[:-1], ids[1:], reduction="none")
        assert loss == pytest.approx(losses[torch.tensor(sample.counts[1:])].mean().item())
    assert trainer.evaluate(weights, []) == []


def test_the_same_calls_give_the_same_bits_and_another_seed_others(model):
    spec = dataclasses.replace(SPEC, dropout=0.2)

    def trained(seed: int) -> str:
        config = dataclasses.replace(CONFIG, seed=seed, batch_tokens=32, accumulation=2)
        trainer = Trainer(model)
        trainer.open(A, start(model, spec), spec=spec, config=config)
        assert len(list(fit(trainer, A, SAMPLES, num_steps=3))) == 3
        return trainer.snapshot(A).fingerprint()

    assert trained(1) == trained(1) != trained(2)


def test_every_sample_comes_once_before_any_comes_again():
    coming = batches(SAMPLES, TrainConfig(batch_tokens=32, seed=3))
    for _ in range(3):
        seen: list[Sample] = []
        while len(seen) < len(SAMPLES):
            seen += next(coming)
        assert sorted(seen, key=lambda s: s.token_ids) == sorted(SAMPLES, key=lambda s: s.token_ids)
    with pytest.raises(InvalidRequestError):
        next(batches([], CONFIG))


def test_adapters_are_trained_beside_one_another_and_on_serving_threads(model):
    alone, _ = after_steps(model, CONFIG, [SAMPLES])
    trainer = Trainer(model)
    with torch.inference_mode():
        for name in (A, B):
            trainer.open(name, start(model), spec=SPEC, config=CONFIG)
        for _ in range(2):
            trainer.accumulate(B, SAMPLES[:1])
            trainer.accumulate(A, SAMPLES)
            trainer.apply(A)
            trainer.apply(B)
    assert trainer.snapshot(A).fingerprint() == alone.fingerprint()
    assert trainer.snapshot(B).fingerprint() != alone.fingerprint()
    assert trainer.names == ["a", "b"]
    trainer.close(B)
    assert trainer.names == ["a"]


def test_a_reset_leaves_nothing_of_the_past(model):
    fresh, reports = after_steps(model, CONFIG, [SAMPLES])
    trainer = Trainer(model)
    trainer.open(A, random_adapter({"lm_head": model.linears["lm_head"]}, [2], 1), spec=SPEC,
                 config=CONFIG)  # fmt: skip
    trainer.accumulate(A, SAMPLES)
    trainer.apply(A)
    trainer.accumulate(A, SAMPLES[1:])
    trainer.reset(A, start(model))
    for report in reports:
        trainer.accumulate(A, SAMPLES)
        assert trainer.apply(A) == report
    assert trainer.snapshot(A).fingerprint() == fresh.fingerprint()


def explosive(model) -> LoraWeights:
    """An adapter whose change of the head is so large that logits overflow."""
    outputs, inputs = model.linears["lm_head"]
    return LoraWeights(
        {"lm_head": LowRank(torch.full((inputs, 1), 1e30), torch.full((1, outputs), 1e30))}
    )


def test_a_step_that_is_no_number_is_not_taken(model):
    trainer = Trainer(model)
    trainer.open(A, explosive(model), spec=dataclasses.replace(SPEC, rank=1), config=CONFIG)
    before = trainer.snapshot(A).fingerprint()
    with pytest.raises(NonFiniteTrainingError, match="the loss"):
        trainer.accumulate(A, SAMPLES)
    assert trainer.snapshot(A).fingerprint() == before
    with pytest.raises(InvalidRequestError, match="no samples"):
        trainer.apply(A)  # nothing is left of the step
    with pytest.raises(NonFiniteTrainingError):
        trainer.evaluate(explosive(model), SAMPLES)
    trainer.reset(A, start(model))
    trainer.accumulate(A, SAMPLES)
    assert trainer.apply(A).loss > 0


def test_a_gradient_that_is_no_number_is_not_taken(model):
    """A is so large that the gradient of B overflows, while B is zero and the loss a number."""
    outputs, inputs = model.linears["lm_head"]
    steep = LoraWeights(
        {"lm_head": LowRank(torch.full((inputs, 1), 1e37), torch.zeros(1, outputs))}
    )
    trainer = Trainer(model)
    trainer.open(A, steep, spec=dataclasses.replace(SPEC, rank=1), config=CONFIG)
    trainer.accumulate(A, SAMPLES)
    with pytest.raises(NonFiniteTrainingError, match="the gradient"):
        trainer.apply(A)
    assert trainer.snapshot(A).fingerprint() == steep.fingerprint()
    with pytest.raises(InvalidRequestError, match="no samples"):
        trainer.apply(A)  # nothing is left of the step


def test_a_sample_that_does_not_fit_gives_up_the_step(model):
    trainer = Trainer(model)
    trainer.open(A, start(model), spec=SPEC, config=CONFIG)
    with pytest.raises(InvalidRequestError):
        trainer.accumulate(A, [*SAMPLES, Sample.text([1, 97])])
    with pytest.raises(InvalidRequestError, match="no samples"):
        trainer.apply(A)


def test_names_and_adapters_that_do_not_fit_are_refused(model):
    trainer = Trainer(model)
    trainer.open(A, start(model), spec=SPEC, config=CONFIG)
    with pytest.raises(AdapterExistsError):
        trainer.open(A, start(model), spec=SPEC, config=CONFIG)
    for call in (trainer.apply, trainer.snapshot, trainer.close, trainer.config):
        with pytest.raises(AdapterNotFoundError):
            call(B)
    strange = random_adapter({"layers.0.mlp.up_proj": (7, 9)}, [2], seed=1)
    with pytest.raises(IncompatibleAdapterError):
        trainer.open(AdapterName("c"), strange, spec=SPEC, config=CONFIG)
    with pytest.raises(IncompatibleAdapterError):
        trainer.evaluate(strange, SAMPLES)
    with pytest.raises(InvalidSettingsError):
        trainer.open(
            AdapterName("c"),
            start(model),
            spec=dataclasses.replace(SPEC, dropout=0.1),
            config=TrainConfig(recompute=True),
        )
    assert trainer.names == ["a"]


def test_masks_move_and_training_goes_on(model):
    spec = LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.98, targets=TARGETS)
    still = TrainConfig(learning_rate=1e-2)
    moving = dataclasses.replace(still, regrow_every=3, regrow_fraction=0.5)
    fixed, fixed_reports = after_steps(model, still, [SAMPLES], spec, num_steps=12)
    moved, reports = after_steps(model, moving, [SAMPLES], spec, num_steps=12)
    assert reports[:3] == fixed_reports[:3]  # watching changes nothing
    assert reports[-1].loss < fixed_reports[-1].loss < fixed_reports[0].loss
    for path, delta in moved.modules.items():
        before = fixed.modules[path]
        assert isinstance(delta, Sparse)
        assert isinstance(before, Sparse)
        assert delta.mask.num_active == before.mask.num_active
        assert not torch.equal(delta.mask.indices, before.mask.indices)


def test_muon_moves_matrices_by_orthogonal_steps(model):
    config = TrainConfig(learning_rate=1e-2, optimizer="muon")
    weights, reports = after_steps(model, config, [SAMPLES], num_steps=8)
    assert reports[-1].loss < reports[0].loss
    one, _ = after_steps(model, config, [SAMPLES], num_steps=1)
    for path, delta in one.modules.items():
        assert isinstance(delta, LowRank)
        sizes = torch.linalg.svdvals(delta.b)  # B began at zero
        assert sizes.max() < 2 * sizes.min()
        assert weights.modules[path].rank == delta.rank
    masked = LoraSpec(rank=4, alpha=8, targets=TARGETS, sparsity=0.5)
    _, sparse_reports = after_steps(model, config, [SAMPLES], masked, num_steps=8)
    assert sparse_reports[-1].loss < sparse_reports[0].loss
