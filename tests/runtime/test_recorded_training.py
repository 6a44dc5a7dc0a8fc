"""How an adapter is to be trained: recorded when it is made, read when it is trained."""

from dataclasses import fields
from typing import Any

import pytest

from hyprstream.errors import InvalidAdapterError, InvalidSettingsError
from hyprstream.lora.spec import LoraSpec
from hyprstream.runtime.adapted import Recipe, create_adapter
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.recorded_training import recorded_training
from hyprstream.runtime.settings import Settings
from hyprstream.store.manifest import SpecValue
from hyprstream.store.store import AdapterStore
from hyprstream.train.config import TrainConfig
from tests.runtime.adapted_models import commit, made_for, make_folder, trained

SPEC = LoraSpec(rank=2, alpha=4)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Model:
    folder = tmp_path_factory.mktemp("home")
    return Model.load(make_folder(folder / "model"), settings=Settings(home=folder))


@pytest.fixture
def adapters(tmp_path):
    with Adapters(AdapterStore(tmp_path / "adapters")) as adapters:
        yield adapters


def manifest(adapters, ref: str = "x"):
    return adapters.manifest(adapters.resolve(ref))


def config(adapters) -> TrainConfig:
    return TrainConfig(**dict[str, Any](recorded_training(manifest(adapters))))


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"learning_rate": 0.002},
        {"optimizer": "muon", "betas": (0.8, 0.9), "max_grad_norm": None, "recompute": True},
        {"schedule": "linear", "total_steps": 9, "warmup_steps": 3, "final_share": 0.5},
    ],
)
def test_what_was_recorded_is_how_it_is_trained(adapters, model, given):
    create_adapter(adapters, "x", model, Recipe(spec=SPEC, seed=7, training=given))
    assert config(adapters) == TrainConfig(seed=7, **given)
    assert dict(adapters.info("x").training) == given


def test_every_setting_can_be_recorded(adapters, model):
    default = TrainConfig(total_steps=5)
    given = {f.name: getattr(default, f.name) for f in fields(TrainConfig) if f.name != "seed"}
    create_adapter(adapters, "x", model, Recipe(spec=SPEC, training=given))
    assert config(adapters) == default


def test_it_outlives_another_code(adapters, model):
    recipe = Recipe(spec=SPEC, seed=7, training={"learning_rate": 0.002})
    create_adapter(adapters, "x", model, recipe)
    adapters.compress("x", "raw")
    assert recorded_training(manifest(adapters))["learning_rate"] == 0.002


def test_one_of_which_nothing_was_recorded_is_trained_by_default(adapters, model):
    commit(adapters, "x", model, trained(model, 1))
    assert config(adapters) == TrainConfig(seed=manifest(adapters).spec.get("seed", 0))


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"learning_rate": 0.0}, InvalidSettingsError, "learning_rate is 0.0"),
        ({"learning_rate": 1.5}, InvalidSettingsError, "learning_rate is 1.5"),
        ({"learning_rate": float("nan")}, InvalidSettingsError, "learning_rate is nan"),
        ({"learning_rate": "0.1"}, InvalidAdapterError, "learning_rate: "),
        ({"learning_rate": None}, InvalidAdapterError, "learning_rate: "),
        ({"betas": (0.9,)}, InvalidAdapterError, "betas"),
        ({"optimizer": "sgd"}, InvalidAdapterError, "optimizer: "),
        ({"schedule": "cosine"}, InvalidSettingsError, "total_steps is not set"),
        ({"rate": 0.1}, InvalidAdapterError, "no setting 'rate'"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused_when_an_adapter_is_made(given, error, message):
    with pytest.raises(error, match=message):
        Recipe(spec=SPEC, training=given)


@pytest.mark.parametrize(
    "spec",
    [
        {"learning_rate": "fast"},
        {"learning_rate": True},
        {"learning_rate": 1e300},
        {"seed": "x"},
        {"batch_tokens": 0},
        {"accumulation": 1 << 62, "batch_tokens": 0.5},
    ],
    ids=str,
)
def test_what_a_stranger_recorded_is_checked(adapters, model, spec: dict[str, SpecValue]):
    version = adapters._store.commit(b"", made_for(model, spec=spec))
    adapters.create("x", version)
    with pytest.raises((InvalidAdapterError, InvalidSettingsError)):
        recorded_training(manifest(adapters))
