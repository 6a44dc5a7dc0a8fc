"""The base model's own text: that it is the same again, is kept, and holds adapters."""

import json
import random
from itertools import islice

import pytest

from hyprstream.errors import ConflictError
from hyprstream.lora.spec import LoraSpec
from hyprstream.runtime.adapted import Recipe, create_adapter
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.anchors import ANCHOR_SEED, anchors_for, kept_texts, num_sheets
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.trained import finish_training
from hyprstream.runtime.training import Training
from hyprstream.runtime.training_records import USUAL_STEPS, USUAL_TRAINING, TrainingPlan
from hyprstream.train.dataset import DataConfig
from tests.runtime.adapted_models import make_folder, same
from tests.train.makers import write

SPEC = LoraSpec(rank=4, alpha=8, targets=("q_proj", "v_proj", "down_proj"))


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(scope="module")
def tiny(home) -> Model:
    return Model.load(make_folder(home / "model"), settings=Settings(home=home))


@pytest.fixture(scope="module")
def anchors(tiny, home):
    return anchors_for(tiny, home / "anchors")


@pytest.fixture
def adapters(tiny, tmp_path):
    with open_adapters(Settings(home=tmp_path)) as opened:
        create_adapter(opened, "poet", tiny, Recipe(spec=SPEC))
        yield opened


def plan_of(folder, steps: int, **train) -> TrainingPlan:
    rows = [{"prompt": f"say {n}", "completion": f" {n} aaaa"} for n in range(40)]
    return TrainingPlan(
        data=(write(folder, *rows),),
        data_config=DataConfig(held_out_share=0.3),
        train={"learning_rate": 2e-2, "batch_tokens": 128, "anchor_tokens": 128, **train},
        run={"num_steps": steps, "evaluate_every": 4, "save_every": 2},
    )


@pytest.mark.slow
def test_anchors_follow_from_the_model_and_the_seed(tiny, anchors):
    assert anchors_for(tiny) == anchors
    assert {len(text.token_ids) for text in (*anchors.pulled, *anchors.held_out)} == {65}
    other = anchors_for(tiny, seed=1)
    assert other.fingerprint != anchors.fingerprint
    assert not set(anchors.pulled) & set(anchors.held_out)
    assert len(set(anchors.pulled)) == len(anchors.pulled)


def test_sheets_are_made_one_by_one_and_those_that_are_kept_stay(tiny, anchors, home):
    told: list[tuple[int, int]] = []
    folder = home / "anchors"
    more = anchors_for(tiny, folder, sheets=2, tell=lambda *counts: told.append(counts))
    assert told == [(48, 96), (96, 96)]
    assert more.held_out == anchors.held_out
    assert more.pulled[:40] == anchors.pulled
    assert len(set(more.pulled)) == len(more.pulled) == 88
    told.clear()
    assert anchors_for(tiny, folder, sheets=2, tell=lambda *counts: told.append(counts)) == more
    assert not told
    (second,) = folder.glob("*-1.json")
    second.unlink()


def test_long_runs_are_held_by_more_text():
    assert [num_sheets(steps * 256) for steps in (1, 30, 31, 160, 1000)] == [1, 1, 2, 5, 8]


def test_the_token_that_a_text_was_drawn_from_is_left_out(tiny, anchors):
    control = tiny.tokenizer.control_ids
    begins = [t for t in range(tiny.decoder.config.vocab_size) if t not in control]
    luck, num_same = random.Random(ANCHOR_SEED), 0  # noqa: S311 - no secret
    for text in (*anchors.held_out, *anchors.pulled):
        num_same += text.token_ids[0] == luck.choice(begins)
        luck.randrange(1 << 31)  # by which the text went on
    assert num_same < 8  # by chance; 48 with them


def test_kept_anchors_are_taken_and_damaged_ones_made_anew(tiny, anchors, home):
    (file,) = (home / "anchors").iterdir()
    content = file.read_bytes()
    kept = json.loads(content)
    texts = [[token ^ 1 for token in text] for text in kept["texts"]]
    file.write_text(json.dumps({**kept, "texts": texts}))
    assert list(anchors_for(tiny, file.parent).pulled[0].token_ids) == texts[8]
    file.write_bytes(content[:-9])
    assert anchors_for(tiny, file.parent) == anchors
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "change",
    [
        {"form": 1},
        {"texts": 7},
        {"texts": [[1, 2]]},
        {"texts": [[1, 2]] * 47 + [[0, 256]]},
        {"texts": [[1, 2]] * 47 + [[True, True]]},
        {"texts": [[1, 2]] * 47 + [[1] * 66]},
        {"padding": "a" * (1 << 20)},
    ],
)
def test_texts_of_another_form_are_not_taken(tmp_path, change):
    file = tmp_path / "anchors.json"
    sound = {"form": 2, "texts": [[1, 2]] * 48}
    file.write_text(json.dumps(sound))
    assert kept_texts(file, vocab_size=256) == sound["texts"]
    file.write_text(json.dumps({**sound, **change}))
    assert kept_texts(file, vocab_size=256) is None


def test_training_is_held_by_them_unless_it_is_asked_not_to_be(
    tiny, adapters, anchors, home, tmp_path
):
    moved = {}
    for pull in ({}, {"base_pull": 0.0}):
        folder = tmp_path / str(len(pull))
        with Training(adapters, "poet", tiny, folder, anchors=home / "anchors") as training:
            run = training.begin(plan_of(tmp_path, 16, **pull))
            reports = [progress.report for progress in run.steps()]
            weights = run.run.best.weights
            done = finish_training(run, "never")
        assert (run.anchors == anchors) == (not pull)
        assert (reports[-1].pull > 0) == (not pull)
        loss, base = (sum(run.trainer.evaluate(of, anchors.held_out)) for of in (weights, None))
        moved[len(pull)] = loss / base - 1
        assert reports[-1].loss < 0.8 * reports[0].loss, "it learns all the same"
        if pull:
            assert done.drift is None
        else:
            assert done.drift is not None
            assert done.drift.share == pytest.approx(moved[0], abs=1e-6)
            assert done.metrics["anchor_loss"] == pytest.approx(done.drift.loss)
    assert moved[0] < moved[1] / 2


def test_anchors_are_cut_to_what_a_batch_takes(tiny, adapters, home, tmp_path):
    plan = plan_of(tmp_path, 1, batch_tokens=20, anchor_tokens=12)
    kept = home / "anchors"
    with Training(adapters, "poet", tiny, tmp_path / "training", anchors=kept) as training:
        run = training.begin(plan)
        (told,) = run.steps()
        assert finish_training(run, "never").step in (0, 1)
    assert run.anchors is not None
    assert {sample.num_computed for sample in run.anchors.pulled} == {12}
    assert 0 < told.report.num_tokens <= 32


@pytest.mark.slow
def test_a_held_run_goes_on_to_the_same_bits_from_the_same_anchors_alone(
    tiny, adapters, home, tmp_path
):
    plan, kept = plan_of(tmp_path, 6), home / "anchors"
    with Training(adapters, "poet", tiny, tmp_path / "whole", anchors=kept) as training:
        run = training.begin(plan)
        list(run.steps())
        expected = run.run.best.weights
    with Training(adapters, "poet", tiny, tmp_path / "cut", anchors=kept) as training:
        list(islice(training.begin(plan).steps(), 3))
    (file,) = kept.iterdir()
    content = json.loads(file.read_bytes())
    changed = [[token ^ 1 for token in text] for text in content["texts"]]
    file.write_text(json.dumps({**content, "texts": changed}))
    with Training(adapters, "poet", tiny, tmp_path / "cut", anchors=kept) as training:
        with pytest.raises(ConflictError, match="text of the base model"):
            training.resume()
        file.unlink()  # it is made anew
        run = training.resume()
        list(run.steps())
        assert same(run.run.best.weights, expected)


def test_who_says_nothing_gets_small_steps_that_are_enough_of_them(tiny, adapters, home, tmp_path):
    data = plan_of(tmp_path, 1).data
    folder, kept = tmp_path / "training", home / "anchors"
    with Training(adapters, "poet", tiny, folder, anchors=kept) as training:
        run = training.begin(TrainingPlan(data=data, train={"anchor_tokens": 32}))
    assert run.config.base_pull == USUAL_TRAINING["base_pull"] > 0
    assert run.config.learning_rate == USUAL_TRAINING["learning_rate"]
    assert run.length.num_steps == USUAL_STEPS == run.config.total_steps
    tokens = sum(sample.num_computed for sample in run.material.dataset.trained.samples)
    assert run.config.batch_tokens == 128 > tokens / 10
    assert run.material.batch_tokens(2048) == 128
