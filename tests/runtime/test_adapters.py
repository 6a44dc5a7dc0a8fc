"""Adapters from a model into the store and back to the model."""

import json
import math
import os
from pathlib import Path

import pytest
import torch

from hyprstream.errors import (
    AdapterExistsError,
    AdapterNotFoundError,
    IncompatibleAdapterError,
    InvalidRequestError,
    InvalidSettingsError,
    StaleParentError,
    UnsupportedError,
)
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights, pack
from hyprstream.runtime.adapted import Recipe, create_adapter, load_adapter
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from hyprstream.store.records import Note
from hyprstream.store.store import AdapterStore
from hyprstream.vdb.learned.rate import Target
from tests.lora.adapters import make_bank, packed_logits
from tests.runtime.adapted_models import commit, first_logits, made_for, make_folder, same, trained


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("home")
    return Model.load(make_folder(folder / "model"), settings=Settings(home=folder))


@pytest.fixture
def adapters(tmp_path):
    with Adapters(AdapterStore(tmp_path / "adapters")) as adapters:
        yield adapters


SPECS = {
    "low_rank": LoraSpec(rank=4, alpha=8, targets=("q_proj", "v_proj")),
    "sparse": LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.9),
    "by magnitude": LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.9, mask="magnitude"),
    "tiny": LoraSpec(rank=4, alpha=8, kind="tiny"),
    "masked": LoraSpec(rank=4, alpha=8, sparsity=0.5, structure="leaf"),
    "patterns": LoraSpec(
        rank=4, alpha=8, rank_pattern={"v_proj": 2}, alpha_pattern={"layers.0.self_attn.q_proj": 3}
    ),
}


@pytest.mark.parametrize("codec", ["raw", "zstd", "neural"])
@pytest.mark.parametrize("name", SPECS)
def test_a_fresh_adapter_comes_back_bit_by_bit(adapters, model, name, codec):
    """In the learned code too, which would keep nothing of an adapter that adds nothing."""
    spec = SPECS[name]
    done = create_adapter(adapters, "fresh", model, Recipe(spec=spec, seed=5, codec=codec))
    loaded = load_adapter(adapters, "fresh", model)
    base = loaded.weights
    expected = create(spec, model.decoder.linears, seed=5, base=_layers(model))
    assert same(base, expected)
    assert (loaded.version, loaded.warning) == (done.version, "")
    assert done.codec == ("zstd" if codec == "neural" else codec)
    answer = model.adapted(base).generate("abc", temperature=0, max_tokens=9)
    assert answer.text == model.generate("abc", temperature=0, max_tokens=9).text


def _layers(model):
    return BaseLayers(model.decoder.weights)


@pytest.mark.parametrize("kinds", [("low_rank",), ("sparse",), ("low_rank", "sparse")])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_what_a_stored_adapter_adds_has_the_bits_of_what_was_stored(adapters, model, codec, kinds):
    weights = trained(model, 1, kinds)
    commit(adapters, "x", model, weights, codec)
    loaded = load_adapter(adapters, "x", model).weights
    assert same(loaded, weights)
    plain = first_logits(model, "Once upon")
    before = first_logits(model.adapted(weights), "Once upon")
    after = first_logits(model.adapted(loaded), "Once upon")
    assert torch.equal(after.view(torch.int32), before.view(torch.int32))
    assert not torch.allclose(after, plain, atol=1e-2)


def test_answers_with_an_adapter_are_those_of_a_batch_with_it(model):
    weights = trained(model, 2, ("low_rank", "sparse"))
    ids = torch.tensor(model.tokenizer.encode("a prompt"))
    bank = make_bank(model.decoder.linears, max_rank=64)
    bank.write(2, weights)
    expected = packed_logits(model.decoder, [ids], bank.view([2] * len(ids)))[0][-1]
    torch.testing.assert_close(first_logits(model.adapted(weights), "a prompt"), expected)


def test_the_model_alone_is_as_before(model):
    before = first_logits(model, "abc")
    adapted = model.adapted(trained(model, 3), "x")
    assert not torch.equal(first_logits(adapted, "abc"), before)
    assert torch.equal(first_logits(model, "abc"), before)
    assert (adapted.adapter, model.adapter) == ("x", "")


def test_a_dense_change_of_every_layer_finds_room_beside_the_model(model):
    linears = model.decoder.linears
    spec = LoraSpec(
        rank=1, alpha=1, kind="sparse", targets=tuple({p.rpartition(".")[2] for p in linears})
    )
    model.adapted(create(spec, linears))


def test_the_learned_code_loses_what_it_says_and_writes_updates(adapters, model):
    weights = trained(model, 4)
    target = Target(error=0.1)
    first = adapters.commit(pack(weights), made_for(model, "neural"), target=target)
    moved = LoraWeights(
        {
            path: type(delta)(delta.a, delta.b * 1.02)  # type: ignore[attr-defined, call-arg]
            for path, delta in weights.modules.items()
        }
    )
    draft = made_for(model, "neural", parent=first.version)
    second = adapters.commit(pack(moved), draft, target=target)
    assert (first.report.is_update, second.report.is_update) == (False, True)
    manifest = adapters.manifest(second.version)
    assert manifest.needs_parent
    assert manifest.metrics["relative_error"] == second.report.relative_error
    adapters.create("x", second.version)
    loaded = load_adapter(adapters, "x", model).weights
    true, got = (
        torch.cat([d.dense().flatten() for d in w.modules.values()]) for w in (moved, loaded)
    )
    error = float((true - got).norm() / true.norm())
    assert error == pytest.approx(second.report.relative_error, rel=1e-3)
    assert error < 0.15


def test_a_seeded_mask_takes_no_room_in_the_learned_code(adapters, model):
    spec = LoraSpec(rank=1, alpha=1, kind="sparse", sparsity=0.9, targets=("q_proj", "up_proj"))
    fresh = pack(create(spec, model.decoder.linears, seed=7))
    generator = torch.Generator().manual_seed(0)
    for tensor in fresh.values():
        tensor.values[:] = torch.randn(tensor.num_active, generator=generator).numpy()
    with_seed = adapters.commit(fresh, made_for(model, "neural"), seed=7)
    without = adapters.commit(fresh, made_for(model, "neural"))
    other = adapters.commit(fresh, made_for(model, "neural"), seed=8)
    assert with_seed.report.size_bytes < 0.8 * without.report.size_bytes
    assert other.report.size_bytes == without.report.size_bytes


def test_an_adapter_of_another_model_is_refused_by_name(adapters, model, tmp_path):
    folder = make_folder(tmp_path / "other", seed=1)
    other = Model.load(folder, settings=Settings(home=tmp_path))
    commit(adapters, "x", other, trained(other, 5))
    with pytest.raises(IncompatibleAdapterError) as caught:
        load_adapter(adapters, "x", model)
    assert str(other.fingerprint) in str(caught.value)
    assert str(model.fingerprint) in str(caught.value)
    forced = load_adapter(adapters, "x", model, force=True)
    assert str(other.fingerprint) in forced.warning
    assert "where its layers fit" in forced.warning
    assert same(forced.weights, trained(other, 5))


def test_a_fingerprint_is_kept_for_the_next_time(tmp_path):
    folder = make_folder(tmp_path / "model")
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    model = Model.load(folder, settings=Settings(home=tmp_path))
    kept = model.fingerprint
    [file] = (tmp_path / "fingerprints").iterdir()
    entry = json.loads(file.read_text())
    assert entry["weights_sha256"] == kept.weights_sha256
    file.write_text(json.dumps(entry | {"weights_sha256": "ab" * 32}))
    again = Model.load(folder, settings=Settings(home=tmp_path)).fingerprint
    assert (again.weights_sha256, again.name) == ("ab" * 32, str(folder))


def test_a_model_that_was_rounded_while_loading_is_told_of(adapters, model):
    commit(adapters, "x", model, trained(model, 5))
    rounded = Model.load(model.ref, quantize="int8", settings=Settings(home=Path(model.ref).parent))
    loaded = load_adapter(adapters, "x", rounded)
    assert "rounded to int8" in loaded.warning
    assert same(loaded.weights, trained(model, 5))


def test_layers_that_do_not_fit_are_refused_even_if_forced(adapters, model):
    weights = LoraWeights({"layers.9.q_proj": trained(model, 1).modules["layers.0.mlp.up_proj"]})
    commit(adapters, "x", model, weights)
    loaded = load_adapter(adapters, "x", model, force=True)
    with pytest.raises(IncompatibleAdapterError, match=r"layers\.9\.q_proj"):
        model.adapted(loaded.weights)


def test_rollback_brings_back_every_bit(adapters, model):
    first, second = trained(model, 6), trained(model, 7)
    old = commit(adapters, "x", model, first)
    new = adapters.commit(pack(second), made_for(model, parent=old.version))
    adapters.move("x", new.version, expected=old.version, note=Note(why="better"))
    assert same(load_adapter(adapters, "x", model).weights, second)
    assert adapters.rollback("x") == old.version
    assert same(load_adapter(adapters, "x", model).weights, first)
    assert [move.action for move in adapters.history("x")] == ["create", "promote", "rollback"]
    with pytest.raises(StaleParentError):
        adapters.move("x", new.version, expected=new.version)
    assert adapters.promote(f"x@{new.version[:12]}") == new.version
    assert same(load_adapter(adapters, "x", model).weights, second)


def test_compressing_is_a_new_version_of_the_same(adapters, model):
    weights = trained(model, 8)
    old = commit(adapters, "x", model, weights)
    small = adapters.compress("x", "neural", target=Target(error=0.2), tag="small")
    assert adapters.resolve("x") == old.version
    assert adapters.resolve("x:small") == small.version
    raw = adapters.compress("x", "raw")
    assert adapters.resolve("x") == raw.version
    assert same(load_adapter(adapters, "x", model).weights, weights)
    assert not same(load_adapter(adapters, "x:small", model).weights, weights)
    manifest = adapters.manifest(raw.version)
    assert (manifest.parent, manifest.codec, manifest.needs_parent) == (old.version, "raw", False)


def test_compressing_what_adds_nothing_is_refused(adapters, model):
    create_adapter(adapters, "x", model, Recipe(spec=SPECS["low_rank"]))
    with pytest.raises(InvalidRequestError, match="adds nothing yet"):
        adapters.compress("x", "neural")


def test_info_tells_norms_density_and_ratio(adapters, model):
    weights = trained(model, 9, ("low_rank", "sparse"))
    done = commit(adapters, "x", model, weights, "neural")
    adapters.tag("x:stable", done.version)
    info = adapters.info("x")
    assert (info.version, info.tags, info.manifest.codec) == (done.version, ("stable",), "neural")
    loaded = load_adapter(adapters, "x", model).weights
    for module in info.modules:
        norm = float(loaded.modules[module.path].dense().double().norm())
        assert module.norm == pytest.approx(norm, rel=1e-5)
    num_elements = sum(module.num_elements for module in info.modules)
    assert info.ratio == 4 * num_elements / info.manifest.payload.size_bytes
    stats = adapters.grid("x")
    assert stats.num_voxels == sum(module.num_active for module in info.modules)


def test_diff_tells_changes_and_specs(adapters, model):
    weights = trained(model, 10)
    commit(adapters, "x", model, weights)
    scaled = {
        path: type(delta)(delta.a, delta.b * 1.5)  # type: ignore[attr-defined, call-arg]
        for path, delta in weights.modules.items()
    }
    draft = made_for(model, "raw", spec={"rank": 8, "alpha": 4.0})
    adapters.create("y", adapters.commit(pack(LoraWeights(scaled)), draft).version)
    diff = adapters.diff("x", "y")
    assert diff.spec == {"rank": (4, 8), "stored as": ("zstd", "raw")}
    assert all(math.isclose(change.relative or 0, 0.5, rel_tol=1e-5) for change in diff.modules)
    assert adapters.diff("x", "x").spec == {}


def test_all_layers_are_targets_by_one_word(adapters, model):
    spec = LoraSpec(rank=2, alpha=2, targets=("all",))
    create_adapter(adapters, "x", model, Recipe(spec=spec))
    changed = {module.path for module in adapters.info("x").modules}
    assert changed == set(model.decoder.linears) - {"lm_head"}


def test_a_name_is_given_once_and_taken_away(adapters, model):
    recipe = Recipe(spec=SPECS["low_rank"])
    create_adapter(adapters, "x", model, recipe)
    with pytest.raises(AdapterExistsError):
        create_adapter(adapters, "x", model, recipe)
    assert [adapter.name for adapter in adapters.list()] == ["x"]
    adapters.delete("x")
    assert adapters.list() == ()
    with pytest.raises(AdapterNotFoundError):
        adapters.info("x")


def test_a_mask_by_gradient_needs_samples(adapters, model):
    spec = LoraSpec(rank=2, alpha=2, sparsity=0.5, mask="gradient")
    with pytest.raises(InvalidSettingsError, match="gradient"):
        create_adapter(adapters, "x", model, Recipe(spec=spec))


def test_an_encoder_takes_no_adapters(adapters, embedding_model):
    with pytest.raises(UnsupportedError, match="embedding model"):
        create_adapter(adapters, "x", Model.load(embedding_model), Recipe(spec=SPECS["low_rank"]))
