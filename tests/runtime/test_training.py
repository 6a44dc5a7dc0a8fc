"""Training joined with the store: what a run leaves there, and what goes on after an end."""

import dataclasses
import json
from itertools import islice
from pathlib import Path

import pytest

from hyprstream.errors import (
    AdapterNotFoundError,
    CacheBusyError,
    ConflictError,
    InvalidDatasetError,
    InvalidRequestError,
    InvalidSettingsError,
    NotFoundError,
    StaleParentError,
)
from hyprstream.lora.spec import LoraSpec
from hyprstream.runtime.adapted import Recipe, create_adapter, load_adapter
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.trained import evaluate_adapter, finish_training
from hyprstream.runtime.training import Training
from hyprstream.runtime.training_records import TrainingPlan
from hyprstream.train.augment import AugmentConfig
from hyprstream.train.curriculum import CurriculumConfig
from hyprstream.train.dataset import DataConfig
from hyprstream.train.split import is_held_out
from tests.runtime.adapted_models import make_folder
from tests.train.makers import write

SPEC = LoraSpec(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Model:
    home = tmp_path_factory.mktemp("tiny")
    return Model.load(make_folder(home / "model"), settings=Settings(home=home))


@pytest.fixture
def adapters(tiny, tmp_path):
    with open_adapters(Settings(home=tmp_path)) as opened:
        create_adapter(opened, "poet", tiny, Recipe(spec=SPEC))
        yield opened


def questions(count: int = 40):
    return [{"prompt": f"say {n}", "completion": f" {n} aaaa"} for n in range(count)]


def chats(count: int):
    return [
        {"messages": [{"role": "user", "content": row["prompt"]},
                      {"role": "assistant", "content": row["completion"]}]}
        for row in questions(count)
    ]  # fmt: skip


def plan_of(folder, rows=None, **options) -> TrainingPlan:
    file = write(folder, *(questions() if rows is None else rows))
    given = {
        "data": (file,),
        "data_config": DataConfig(held_out_share=0.3),
        "train": {"learning_rate": 2e-2, "batch_tokens": 128},
        "run": {"num_steps": 8, "evaluate_every": 4, "save_every": 2},
        **options,
    }
    # What holds an adapter where its base model is, takes time, and has tests of its own.
    return TrainingPlan(**{**given, "train": {"base_pull": 0.0, **given["train"]}})


def test_a_run_makes_a_version_that_is_better_and_the_name_moves(tiny, adapters, tmp_path):
    before = adapters.resolve("poet")
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan_of(tmp_path))
        assert [p.point.step for p in run.steps()] == list(range(1, 9))
        done = finish_training(run)
    assert done.is_promoted
    assert "held-out loss changed by -" in done.why
    assert adapters.resolve("poet") == adapters.resolve("poet:candidate") == done.version
    manifest = adapters.manifest(done.version)
    assert manifest.parent == before == done.parent
    assert manifest.metrics == done.metrics
    assert manifest.metrics["held_out_loss"] < manifest.metrics["parent_held_out_loss"] - 0.5
    assert manifest.metrics["num_steps"] == done.step
    assert manifest.provenance["method"] == "answers"
    assert json.loads(manifest.provenance["plan"])["data"] == ["samples.jsonl"]
    assert manifest.spec == adapters.manifest(before).spec
    # What was measured is what is stored.
    loaded = load_adapter(adapters, "poet", tiny)
    samples = run.material.dataset.held_out.samples
    losses = run.trainer.evaluate(loaded.weights, samples, batch_tokens=128)
    best = run.run.best.held_out
    assert best is not None
    assert losses == list(best.losses)
    with (
        Training(adapters, "poet", tiny, tmp_path / "training") as training,
        pytest.raises(NotFoundError, match="interrupted"),
    ):
        training.resume()


def test_a_run_that_was_stopped_goes_on_to_the_same_version(tiny, adapters, tmp_path):
    plan = plan_of(tmp_path)
    whole = tmp_path / "whole"
    with Training(adapters, "poet", tiny, whole) as training:
        run = training.begin(plan)
        list(run.steps())
        expected = run.run.best.weights.fingerprint()
        run.discard()
    folder = tmp_path / "training"
    with Training(adapters, "poet", tiny, folder) as training:
        list(islice(training.begin(plan).steps(), 5))  # saved after step 4
    with Training(adapters, "poet", tiny, folder) as training:
        with pytest.raises(ConflictError, match="can go on"):
            training.begin(plan)
        run = training.resume()
        assert run.run.num_steps_done == 4
        list(run.steps())
        assert run.run.best.weights.fingerprint() == expected
        run.save()
    write(tmp_path, *questions(39))
    with Training(adapters, "poet", tiny, folder) as training:
        with pytest.raises(ConflictError, match="no longer"):
            training.resume()
        training.discard()
        training.begin(plan)


def test_what_is_not_better_is_no_version(tiny, adapters, tmp_path):
    """What is learnt second contradicts what is judged by, which the first run has learnt."""
    other = [
        row if is_held_out(row["prompt"], 0.3) else {**row, "completion": " zzzzzz"}
        for row in questions()
    ]
    found = []
    for rows in (questions(), other):
        with Training(adapters, "poet", tiny, tmp_path / "training") as training:
            run = training.begin(plan_of(tmp_path, rows=rows))
            list(run.steps())
            found.append(finish_training(run))
    assert found[0].version == found[1].parent == adapters.resolve("poet")
    assert (found[1].version, found[1].is_promoted) == (None, False)


def test_what_is_not_sure_stays_a_candidate(tiny, adapters, tmp_path):
    before = adapters.resolve("poet")
    few = plan_of(tmp_path, rows=questions(12))
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(few)
        list(run.steps())
        done = finish_training(run)
    assert done.version is not None
    assert not done.is_promoted
    assert "too few" in done.why
    assert adapters.resolve("poet") == before
    assert adapters.resolve("poet:candidate") == done.version


@pytest.mark.parametrize(("promotion", "moves"), [("always", True), ("never", False)])
def test_promotion_can_be_ordered_and_forbidden(tiny, adapters, tmp_path, promotion, moves):
    plan = plan_of(tmp_path, data_config=DataConfig(held_out_share=0))
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan)
        list(run.steps())
        done = finish_training(run, promotion)
    assert done.is_promoted is moves
    assert (adapters.resolve("poet") == done.version) is moves
    assert "held_out_loss" not in done.metrics


def test_a_name_that_was_moved_meanwhile_stays(tiny, adapters, tmp_path):
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan_of(tmp_path))
        list(run.steps())
        other = create_adapter(adapters, "other", tiny, Recipe(spec=SPEC, seed=7)).version
        adapters.move("poet", other, expected=adapters.resolve("poet"))
        with pytest.raises(StaleParentError):
            finish_training(run)
    assert adapters.resolve("poet") == other
    assert adapters.resolve("poet:candidate") != other


def test_an_adapter_is_trained_by_one_process_at_a_time(tiny, adapters, tmp_path):
    with (
        Training(adapters, "poet", tiny, tmp_path / "training"),
        pytest.raises(CacheBusyError, match="training of poet"),
        Training(adapters, "poet", tiny, tmp_path / "training"),
    ):
        pass


PAIRS = [{"prompt": f"say {n}", "chosen": "aa", "rejected": "zz"} for n in range(30)]
THUMBS = [{"prompt": f"say {n}", "completion": "az"[n % 2] * 3, "label": n % 2 == 0}
          for n in range(40)]  # fmt: skip


@pytest.mark.parametrize(("rows", "method"), [(PAIRS, "pairs"), (THUMBS, "thumbs")])
def test_preferences_are_learnt(tiny, adapters, tmp_path, rows, method):
    plan = plan_of(tmp_path, rows=rows)
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan)
        assert run.material.method == method
        list(run.steps())
        done = finish_training(run)
    assert done.metrics["held_out_loss"] < 0.9 * done.metrics["parent_held_out_loss"]
    assert "perplexity" not in done.metrics


def test_data_of_several_sorts_is_learnt_as_it_is_asked_for(tiny, adapters, tmp_path):
    both = plan_of(tmp_path, rows=[*chats(5), *PAIRS])
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        with pytest.raises(InvalidRequestError, match="answers and pairs"):
            training.begin(both)
        run = training.begin(dataclasses.replace(both, method="answers"))
        assert run.material.method == "answers"
        with pytest.raises(InvalidDatasetError, match="no thumbs"):
            training.begin(dataclasses.replace(both, method="thumbs"))


def test_curriculum_replay_and_augmentation_take_part(tiny, adapters, tmp_path):
    earlier = write(tmp_path, *questions(9), name="earlier.jsonl")
    plan = plan_of(
        tmp_path,
        replay=(earlier,),
        curriculum=CurriculumConfig(difficulty="loss", replay_share=0.25),
        augment=AugmentConfig(copies=1, rephrase=1, token_dropout=0.1),
    )
    plain = plan_of(tmp_path)
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan)
        other = training.begin(plain)
        assert len(run.material.trained) == 2 * len(other.material.trained)
        assert 4 < len(run.material.earlier) < 9, "what may be judged by is not learnt"
        assert run.material.dataset.held_out == other.material.dataset.held_out
        assert run.material.fingerprint != other.material.fingerprint
        reports = [p.report for p in run.steps()]
    assert reports[-1].loss < reports[0].loss


def test_passes_over_the_data_decide_how_many_steps_there_are(tiny, adapters, tmp_path):
    plan = plan_of(
        tmp_path,
        run={},
        epochs=2.0,
        train={"batch_tokens": 128, "accumulation": 2},
        data_config=DataConfig(held_out_share=0),
    )
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan)
    num_tokens = run.material.dataset.report.num_tokens
    assert num_tokens / 128 <= run.length.num_steps <= 1.5 * num_tokens / 128 + 1
    assert run.config.total_steps == run.length.num_steps
    assert run.config.schedule == "cosine"


def test_a_run_takes_what_was_recorded_with_the_adapter_and_is_not_asked_otherwise(
    tiny, adapters, tmp_path
):
    recorded: dict[str, str | float] = {
        "learning_rate": 0.002,
        "weight_decay": 0.01,
        "optimizer": "muon",
    }
    create_adapter(adapters, "sculptor", tiny, Recipe(spec=SPEC, seed=7, training=recorded))
    plan = plan_of(tmp_path, train={"batch_tokens": 128, "weight_decay": 0.1})
    with Training(adapters, "sculptor", tiny, tmp_path / "training") as training:
        config = training.begin(plan).config
    assert (config.learning_rate, config.optimizer, config.seed) == (0.002, "muon", 7)
    assert config.weight_decay == 0.1


def test_a_plan_is_the_same_after_json():
    plan = TrainingPlan(
        data=(Path("/a/b.jsonl"),),
        train={"betas": (0.9, 0.95)},
        augment=AugmentConfig(copies=2),
        epochs=1.5,
    )
    assert TrainingPlan.of_plain(json.loads(json.dumps(plan.plain()))) == plan


@pytest.mark.parametrize(
    "wrong",
    [
        {"data": ()},
        {"epochs": 0},
        {"max_tokens": 1},
        {"train": {"speed": 1}},
        {"train": {"learning_rate": 7}},
        {"run": {"patience": -1}},
        {"curriculum": CurriculumConfig(replay_share=0.5)},
    ],
)
def test_plans_that_make_no_sense_are_refused(tmp_path, wrong):
    with pytest.raises(InvalidSettingsError):
        plan_of(tmp_path, **wrong)


def test_an_adapter_that_is_not_there_is_refused(tiny, adapters, tmp_path):
    with (
        Training(adapters, "nobody", tiny, tmp_path / "training") as training,
        pytest.raises(AdapterNotFoundError),
    ):
        training.begin(plan_of(tmp_path))


def test_an_evaluation_compares_with_the_base_model(tiny, adapters, tmp_path):
    with Training(adapters, "poet", tiny, tmp_path / "training") as training:
        run = training.begin(plan_of(tmp_path))
        list(run.steps())
        finish_training(run)
    file = write(tmp_path, *questions(50)[40:], name="new.jsonl")
    config = DataConfig(held_out_share=0)
    found = evaluate_adapter(adapters, "poet", tiny, [file], config)
    assert found.version == adapters.resolve("poet")
    assert found.adapter.loss < found.base.loss
    assert found.adapter.num_samples == found.base.num_samples == 10
    assert found.num_better > 5
    pairs = write(tmp_path, *PAIRS, name="pairs.jsonl")
    with pytest.raises(InvalidRequestError, match="choices"):
        evaluate_adapter(adapters, "poet", tiny, [pairs], config)
