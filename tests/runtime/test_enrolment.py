"""An adapter, its model and its policy as a learner."""

import math
from dataclasses import replace

import pytest

from hyprstream.errors import IncompatibleAdapterError, InvalidDatasetError
from hyprstream.lora.spec import LoraSpec
from hyprstream.runtime.adapted import Recipe, create_adapter
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.enrolment import MAX_TRUSTED, UNRELATED, evenly, learner_of
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.model import Model
from hyprstream.runtime.policy import LearningPolicy, Policies
from hyprstream.runtime.settings import Settings
from hyprstream.store.store import AdapterStore
from hyprstream.train.sample import Sample
from tests.runtime.adapted_models import make_folder
from tests.train.makers import write

CONFIG = LearningConfig()


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def model(home) -> Model:
    return Model.load(make_folder(home / "model"), settings=Settings(home=home))


@pytest.fixture
def adapters(model, tmp_path):
    with Adapters(AdapterStore(tmp_path / "adapters")) as adapters:
        spec = LoraSpec(rank=2, alpha=4, targets=("q_proj",), dropout=0.1)
        recipe = Recipe(spec=spec, seed=3, training={"learning_rate": 0.01, "batch_tokens": 64})
        create_adapter(adapters, "poet", model, recipe)
        yield adapters


@pytest.mark.timeout(200)
def test_a_learner_is_what_adapter_policy_and_settings_say(adapters, model, home, tmp_path):
    policies = Policies(adapters)
    policies.set("poet", LearningPolicy(steps_per_day=5))
    policies.trust("poet", write(tmp_path, *({"text": f"number {n}"} for n in range(100))))
    (trusted,) = policies.trusted("poet")
    learner = learner_of(adapters, "poet", model, CONFIG, anchors=home / "anchors")
    assert learner.spec == LoraSpec(rank=2, alpha=4, targets=("q_proj",), dropout=0.0)
    assert (learner.training.learning_rate, learner.training.seed) == (0.01, 3)
    assert learner.training.batch_tokens >= CONFIG.buffer.max_sample_tokens
    assert learner.training.recompute  # memory is for requests
    assert learner.config.budget == replace(CONFIG.learner.budget, steps=5)
    assert learner.uniform_loss == math.log(256)
    assert {name: len(samples) for name, samples in learner.trusted.items()} == {
        UNRELATED: 32,
        trusted: MAX_TRUSTED,
    }
    judged = {sample.token_ids for sample in learner.trusted[UNRELATED]}
    assert learner.anchors
    assert judged.isdisjoint(sample.token_ids for sample in learner.anchors)
    free = learner_of(
        adapters, "poet", model, CONFIG, anchors=home / "anchors", training={"base_pull": 0.0}
    )
    assert free.anchors == []


def test_a_trusted_set_that_is_too_small_is_refused(adapters, model, tmp_path):
    Policies(adapters).trust("poet", write(tmp_path, {"text": "one"}))
    with pytest.raises(InvalidDatasetError, match="it has 1 samples"):
        learner_of(adapters, "poet", model, CONFIG)


def test_an_adapter_learns_on_its_own_model_alone(adapters, home):
    other = Model.load(make_folder(home / "other", seed=1), settings=Settings(home=home))
    with pytest.raises(IncompatibleAdapterError):
        learner_of(adapters, "poet", other, CONFIG)


def test_a_large_set_is_thinned_evenly():
    samples = [Sample.text((number, 1)) for number in range(10)]
    assert evenly(samples, 10) == samples
    assert [sample.token_ids[0] for sample in evenly(samples, 4)] == [0, 2, 5, 7]
