import pytest

from hyprstream.errors import InvalidSettingsError
from hyprstream.lora.spec import LoraSpec

PATHS = ["layers.0.q_proj", "layers.0.v_proj", "layers.1.q_proj", "layers.1.xv_proj", "lm_head"]


def test_the_scale_is_alpha_over_the_rank():
    assert LoraSpec(rank=16, alpha=8).scale == 0.5


def test_the_scale_of_rslora_is_alpha_over_the_root_of_the_rank():
    assert LoraSpec(rank=16, alpha=8, use_rslora=True).scale == 2.0


def test_a_target_is_a_path_or_the_last_name_of_one():
    spec = LoraSpec(rank=1, alpha=1, targets=("v_proj", "layers.1.q_proj", "lm_head"))
    assert spec.targeted(PATHS) == ["layers.0.v_proj", "layers.1.q_proj", "lm_head"]


def test_a_target_that_the_model_does_not_have_is_named():
    with pytest.raises(InvalidSettingsError, match="'k_proj'"):
        LoraSpec(rank=1, alpha=1, targets=("q_proj", "k_proj")).targeted(PATHS)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank", 0),
        ("alpha", 0),
        ("alpha", float("nan")),
        ("targets", ()),
        ("targets", ("",)),
        ("kind", "loha"),
        ("sparsity", 1.0),
        ("sparsity", -0.1),
        ("sparsity", float("nan")),
        ("dropout", 1.0),
        ("rank_pattern", {"q_proj": 0}),
        ("alpha_pattern", {"q_proj": float("inf")}),
    ],
)
def test_values_outside_their_range_are_named(field, value):
    with pytest.raises(InvalidSettingsError, match=field):
        LoraSpec(**{"rank": 1, "alpha": 1, field: value})


def test_patterns_name_layers_as_targets_do_and_the_whole_path_counts_first():
    spec = LoraSpec(
        rank=8,
        alpha=16,
        rank_pattern={"q_proj": 4, "layers.1.q_proj": 2},
        alpha_pattern={"v_proj": 8},
    )
    assert [spec.rank_of(path) for path in PATHS] == [4, 8, 2, 8, 8]
    assert [spec.scale_of(path) for path in PATHS] == [4, 1, 8, 2, 2]


def test_a_sparse_adapter_has_no_scale():
    assert LoraSpec(rank=8, alpha=16, kind="sparse").scale_of("layers.0.q_proj") == 1


def test_patterns_do_not_change_with_what_they_were_made_from():
    pattern = {"q_proj": 4}
    spec = LoraSpec(rank=8, alpha=16, rank_pattern=pattern)
    pattern["q_proj"] = 5
    assert spec.rank_of("q_proj") == 4
