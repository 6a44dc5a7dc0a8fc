"""The gate: each reason by itself, and how often chance alone gets past it."""

import dataclasses
import math
import random
import statistics

import pytest

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.gate import Evidence, Gate, GateConfig, Material, Pairs
from hyprstream.train.paired import bound_mean, student_quantile
from hyprstream.train.sample import Sample
from hyprstream.train.screen import answer, prompt, rotated, screen, unlikely

chance = random.Random(7)  # noqa: S311


def losses(number: int, mean: float, spread: float = 0.5) -> list[float]:
    return [chance.gauss(mean, spread) for _ in range(number)]


def changed(before: list[float], by: float, spread: float = 0.02) -> Pairs:
    return Pairs(before=before, after=[loss + chance.gauss(by, spread) for loss in before])


def good() -> Evidence:
    base = losses(32, 2.0)
    return Evidence(
        held_out=changed(losses(24, 3.0), -0.3),
        trusted={"manual": changed(base, 0.0)},
        origin={"manual": base},
        material=Material(
            losses=losses(60, 3.0),
            association=changed(losses(32, 3.0), 0.4),
            uniform_loss=6.0,
            num_samples=64,
            num_suspects=2,
        ),
        gradient_norms=[1.0, 1.2, 0.8],
        norms=(10.0, 11.0),
    )


def verdict(**changes):
    evidence = good()
    known = {field.name for field in dataclasses.fields(Material)}
    about = {name: value for name, value in changes.items() if name in known}
    others = {name: value for name, value in changes.items() if name not in known}
    material = dataclasses.replace(evidence.material, **about)
    found = Gate(GateConfig()).verdict(dataclasses.replace(evidence, material=material, **others))
    # What is known beforehand is said beforehand.
    assert Gate(GateConfig()).doubts(material).reasons == (found.reasons if about else ())
    return found


def test_a_good_candidate_is_accepted_with_its_numbers():
    found = verdict()
    assert found.accepted
    assert found.reasons == ()
    assert found.numbers["held_out"] == pytest.approx(-0.3, abs=0.05)
    assert found.numbers["trusted/manual_high"] < 0.05


BASE = losses(32, 2.0)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"held_out": changed(losses(8, 3.0), -0.3)}, "are set aside"),
        ({"held_out": changed(losses(24, 3.0), 0.0)}, "not better on its own"),
        ({"held_out": Pairs(before=[], after=[])}, "0 samples are set aside"),
        ({"trusted": {}, "origin": {}}, "no trusted set"),
        ({"trusted": {"x": changed(BASE[:9], 0.0)}, "origin": {"x": BASE[:9]}}, "x has 9 samples"),
        ({"trusted": {"x": changed(BASE, 0.12)}, "origin": {"x": BASE}}, "worse on x"),
        (
            {"trusted": {"x": changed(BASE, 0.0)}, "origin": {"x": [b - 0.25 for b in BASE]}},
            "away from the base model on x",
        ),
        ({"num_suspects": 30}, "30 of 64 samples are suspect"),
        ({"losses": losses(60, 7.0)}, "less likely than noise"),
        ({"association": changed(losses(32, 3.0), 0.0)}, "nothing to do with their prompts"),
        ({"norms": (10.0, 30.0)}, "grew by a factor of 3.00"),
        ({"gradient_norms": [1.0, 1.0, 20.0]}, "20.0 times the usual"),
        ({"held_out": Pairs(before=[1.0] * 24, after=[float("nan")] * 24)}, "no finite number"),
    ],
)
def test_every_check_says_why(changes, reason):
    found = verdict(**changes)
    assert not found.accepted
    assert any(reason in text for text in found.reasons)


def test_samples_without_prompts_are_judged_without_association():
    assert verdict(association=None).accepted


def test_gradients_may_fall_for_as_long_as_none_stands_out():
    falling = [20 * 0.95**step for step in range(96)]
    assert max(falling) > 8 * statistics.median(falling)
    assert verdict(gradient_norms=falling).accepted
    falling[60] *= 12
    assert "times the usual" in verdict(gradient_norms=falling).reasons[0]


@pytest.mark.parametrize("share", [0.95, 0.99, 0.999])
@pytest.mark.parametrize("freedom", [8, 11, 23, 63, 127])
def test_quantiles_are_those_of_the_distribution(share, freedom):
    """The density, summed up in 40,000 trapezia from the quantile on, leaves what it should."""
    start, step = student_quantile(share, freedom), 0.005
    heights = [
        (1 + (start + k * step) ** 2 / freedom) ** (-(freedom + 1) / 2) for k in range(40_000)
    ]
    area = step * (math.fsum(heights) - heights[0] / 2)
    factor = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(math.pi * freedom)
    assert factor * area == pytest.approx(1 - share, rel=0.03)


def draw(kind: str) -> float:
    """One difference whose mean is 0."""
    if kind == "normal":
        return chance.gauss(0, 1)
    if kind == "heavy":  # Laplace's
        return chance.expovariate(1) - chance.expovariate(1)
    return 1 - chance.expovariate(1)  # most a little worse, few much better


@pytest.mark.parametrize(
    ("kind", "number", "most"),
    [("normal", 12, 0.015), ("normal", 64, 0.015), ("heavy", 12, 0.012), ("heavy", 64, 0.012),
     ("skewed", 12, 0.012), ("skewed", 64, 0.012)],
)  # fmt: skip
def test_chance_alone_passes_about_once_in_a_hundred(kind, number, most):
    """Out of 2000 candidates that changed nothing; three standard errors are 0.007."""
    passed = 0
    for _ in range(2000):
        differences = [draw(kind) for _ in range(number)]
        passed += bound_mean(differences, 0.01).high < 0
    assert passed / 2000 <= most + 0.007


def test_an_improvement_of_a_third_of_its_spread_is_seen_in_a_hundred_samples():
    seen = 0
    for _ in range(500):
        differences = [chance.gauss(-0.33, 1) for _ in range(100)]
        seen += bound_mean(differences, 0.01).high < 0
    assert seen / 500 > 0.75


def test_two_values_are_needed_for_a_bound():
    assert bound_mean([1.0], 0.01).high == float("inf")
    assert bound_mean([], 0.01).mean == 0


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"min_held_out": 4}, {"min_trusted": 4}])
def test_settings_that_make_no_sense_are_refused(options):
    with pytest.raises(InvalidSettingsError):
        GateConfig(**options)


def sample(number: int, *words: int) -> Sample:
    return Sample.answer([number, number + 1, 7], words or [number * 3 + k for k in range(12)])


def test_a_screen_finds_what_can_be_seen_in_a_batch():
    batch = [sample(n) for n in range(0, 60, 2)]
    assert screen(batch) == {}
    suspicious = [
        sample(101, *[5] * 12),
        sample(103, *[5, 6] * 8),
        *(sample(200 + 2 * n, 1, 2, 3, 4) for n in range(5)),
        sample(300, 1, 2, 9),
        sample(300, 4, 4, 8),
    ]
    found = screen([*batch, *suspicious])
    assert list(found) == list(range(30, 39))
    assert list(found.values()) == ["repeats"] * 2 + ["flood"] * 5 + ["contradiction"] * 2


def labelled(*counts: int) -> list[Sample]:
    """Answers that so many prompts have, each."""
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    return [sample(10 * n, 900 + label, 7) for n, label in enumerate(labels)]


@pytest.mark.parametrize("counts", [(16, 16, 16, 16), (40, 20), (10,) * 12, (30, 10, 10, 10)])
def test_labels_that_many_prompts_have_are_no_flood(counts):
    assert screen(labelled(*counts)) == {}


@pytest.mark.parametrize(
    ("counts", "num_flooding"),
    [((64,), 64), ((50, 10), 50), ((20, *[1] * 40), 20), ((8, 8, *[1] * 48), 16)],
)
def test_an_answer_that_far_more_prompts_have_than_others_is_a_flood(counts, num_flooding):
    assert list(screen(labelled(*counts)).values()) == ["flood"] * num_flooding


def test_unlikely_samples_are_those_beyond_noise_or_far_from_the_others():
    usual = [2.0 + 0.01 * n for n in range(40)]
    assert unlikely(usual, 6.0) == {}
    assert list(unlikely([*usual, 5.5], 6.0)) == [40]
    assert len(unlikely([9.0 + 0.1 * n for n in range(10)], 6.0)) == 10
    assert unlikely([], 6.0) == {}
    assert unlikely([2.0, 2.0, 2.0], 6.0) == {}


def test_rotated_samples_have_the_prompts_of_others_and_their_own_length():
    batch = [Sample.answer([1, 2, 3], [9]), Sample.answer([4, 5], [8, 8]), Sample.text([6, 6, 6])]
    turned = rotated(batch)
    assert [prompt(s) for s in turned] == [(4, 5), (2, 3)]
    assert [answer(s) for s in turned] == [(9,), (8, 8)]
