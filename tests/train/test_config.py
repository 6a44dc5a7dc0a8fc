"""Rates, masks' moves, and values that make no sense."""

import pytest
import torch

from hyprstream.errors import InvalidSettingsError
from hyprstream.train.config import TrainConfig


def torch_rates(config: TrainConfig, *schedulers, num_steps: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=config.learning_rate)
    made = [make(optimizer) for make in schedulers]
    found = []
    for _ in range(num_steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in made:
            scheduler.step()
    return found


def test_rates_are_those_of_torch_schedulers():
    cosine = TrainConfig(learning_rate=0.1, schedule="cosine", total_steps=20, final_share=0.25)
    expected = torch_rates(
        cosine,
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, T_max=20, eta_min=0.025),
        num_steps=21,
    )
    assert [cosine.rate(step) for step in range(21)] == pytest.approx(expected)
    linear = TrainConfig(learning_rate=0.1, warmup_steps=5, schedule="linear", total_steps=25)
    expected = torch_rates(
        linear,
        lambda o: torch.optim.lr_scheduler.SequentialLR(
            o,
            [
                torch.optim.lr_scheduler.LinearLR(o, start_factor=0.2, total_iters=4),
                torch.optim.lr_scheduler.LinearLR(o, 1.0, end_factor=1e-9, total_iters=20),
            ],
            milestones=[5],
        ),
        num_steps=26,
    )
    assert [linear.rate(step) for step in range(26)] == pytest.approx(expected, abs=1e-6)


def test_after_its_end_a_schedule_stays_where_it_is():
    config = TrainConfig(learning_rate=0.1, schedule="cosine", total_steps=4, final_share=0.5)
    assert config.rate(4) == config.rate(100) == pytest.approx(0.05)
    assert TrainConfig(learning_rate=0.1).rate(10**9) == 0.1


def test_masks_move_ever_less_and_not_at_all_in_the_end():
    config = TrainConfig(regrow_every=2, regrow_fraction=0.4, total_steps=16)
    shares = [config.regrowth(step) for step in range(16)]
    assert all(share == 0 for share in shares[::2])
    moves = shares[1::2]
    assert 0.3 < moves[0] < 0.4
    assert moves == sorted(moves, reverse=True)
    assert moves[5:] == [0, 0, 0]
    assert TrainConfig().regrowth(9) == 0
    assert TrainConfig(regrow_every=5, regrow_fraction=0.4).regrowth(499) == 0.4


@pytest.mark.parametrize(
    "fields",
    [
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"learning_rate": 2.0},
        {"warmup_steps": -1},
        {"schedule": "linear"},
        {"schedule": "cosine", "total_steps": 5, "warmup_steps": 5},
        {"weight_decay": -0.1},
        {"betas": (0.9, 1.0)},
        {"max_grad_norm": 0.0},
        {"batch_tokens": 0},
        {"accumulation": 0},
        {"base_pull": -1.0},
        {"base_pull": float("inf")},
        {"regrow_every": -1},
        {"regrow_fraction": 1.5},
        {"final_share": 1.5},
    ],
)
def test_values_outside_their_range_are_refused(fields):
    with pytest.raises(InvalidSettingsError) as failure:
        TrainConfig(**fields)
    assert failure.value.hint
