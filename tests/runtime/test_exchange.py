"""The spec that a manifest holds, and what may stand there instead."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hyprstream.errors import InvalidAdapterError, InvalidInputError
from hyprstream.lora.spec import LoraSpec
from hyprstream.runtime.exchange import spec_of

_LAYERS = st.sampled_from(["q_proj", "layers.0.self_attn.v_proj", "a=b"])
_ALPHAS = st.floats(1e-3, 1e6)


@given(
    fields=st.fixed_dictionaries(
        {
            "rank": st.integers(1, 512),
            "alpha": _ALPHAS,
            "use_rslora": st.booleans(),
            "targets": st.lists(_LAYERS, min_size=1).map(tuple),
            "kind": st.sampled_from(["low_rank", "sparse", "tiny"]),
            "sparsity": st.floats(0, 0.999),
            "structure": st.sampled_from(["unstructured", "leaf"]),
            "mask": st.sampled_from(["seed", "magnitude"]),
            "dropout": st.floats(0, 0.9),
            "rank_pattern": st.dictionaries(_LAYERS, st.integers(1, 64)),
            "alpha_pattern": st.dictionaries(_LAYERS, _ALPHAS),
        }
    )
)
def test_a_spec_comes_back_from_plain_data(fields):
    spec = LoraSpec(**fields)
    stored = json.loads(json.dumps(spec.plain()))
    stored["targets"] = tuple(stored["targets"])
    assert spec_of({**stored, "seed": 3, "codec": "raw"}) == spec


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"rank": "x", "alpha": 1.0},
        {"rank": 4, "alpha": None},
        {"rank": 4, "alpha": 1.0, "targets": ()},
        {"rank": 4, "alpha": 1.0, "rank_pattern": ("q_proj",)},
        {"rank": 4, "alpha": 1.0, "rank_pattern": 5},
        {"rank": 4, "alpha": 1.0, "sparsity": "much"},
    ],
)
def test_what_is_no_spec_is_refused(stored):
    with pytest.raises((InvalidAdapterError, InvalidInputError)):
        spec_of(stored)
