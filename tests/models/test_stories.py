"""A really trained model in every storage format, against recorded reference outputs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from hyprstream.engine.generate import generate
from hyprstream.engine.request import SamplingParams
from hyprstream.models.decoder import Decoder
from hyprstream.models.load import open_model
from hyprstream.models.quant import PackedWeight
from tests.engine.stepping import RowByRow, random_adapter
from tests.models.reference import cached_logits, packed_logits

EXACT = ("gguf/stories260K-F32.gguf", "gguf/stories260K-F16.gguf", "gguf/stories260K-BF16.gguf")
FOLDERS = ("hf", "hf_sharded_fp16", "hf_pad256")


@pytest.fixture(scope="module")
def stories(test_data) -> Path:
    return test_data / "stories260K"


def load(path: Path, dtype: torch.dtype = torch.float32) -> Decoder:
    model = open_model(path).load(device=torch.device("cpu"), dtype=dtype)
    assert isinstance(model, Decoder)
    return model


def cases(stories: Path) -> list[dict]:
    return json.loads((stories / "reference" / "reference.json").read_text())["cases"]


def story(stories: Path) -> Tensor:
    """The text over which the reference measured its losses."""
    case = cases(stories)[2]
    return torch.tensor(case["input_ids"] + case["greedy_64_ids"])


def greedy(model: Decoder, prompt: list[int], num_tokens: int) -> list[int]:
    params = SamplingParams(temperature=0, max_tokens=num_tokens)
    return [event.token_id for event in generate(model, prompt, params)]


@pytest.mark.parametrize("name", ["hf", "gguf/stories260K-F32.gguf"])
def test_float32_logits_equal_the_reference_at_every_position(stories, name):
    model = load(stories / name)
    for case in cases(stories):
        expected = torch.from_numpy(np.load(stories / "reference" / case["logits_file"]))
        ids = torch.tensor(case["input_ids"])
        torch.testing.assert_close(packed_logits(model, ids)[0], expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(cached_logits(model, ids, 3), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", [*FOLDERS, *EXACT])
def test_greedy_tokens_equal_the_reference(stories, name):
    model = load(stories / name)
    # The least margin of all recorded cases is 0.07, and storing in half precision moves
    # logits by up to 0.09; the margins of the third case are wider.
    is_exact = "F32" in name or name in ("hf", "hf_pad256")
    for case in cases(stories) if is_exact else cases(stories)[2:3]:
        prompt, expected = case["input_ids"], case["greedy_64_ids"]
        with torch.no_grad():
            scores = packed_logits(model, torch.tensor(prompt + expected))[0]
        assert scores[len(prompt) - 1 : -1].argmax(-1).tolist() == expected, case["prompt"]


def test_the_loop_generates_the_recorded_tokens(stories):
    case = cases(stories)[1]
    assert greedy(load(stories / "hf"), case["input_ids"], 64) == case["greedy_64_ids"]


def test_the_published_story_is_the_most_likely_one(stories):
    golden = json.loads((stories / "reference" / "published_golden.json").read_text())
    ids = golden["transformers_ids"]
    with torch.no_grad():
        scores = packed_logits(load(stories / "hf"), torch.tensor(ids))[0]
    assert scores[:-1].argmax(-1).tolist() == ids[1:]


@pytest.mark.parametrize("name", EXACT)
def test_greedy_tokens_equal_those_recorded_for_the_file_itself(stories, name):
    entry = next(e for e in quantised(stories) if e["file"] == Path(name).name)
    prompt, expected = cases(stories)[1]["input_ids"], entry["greedy_64_ids"]
    with torch.no_grad():
        scores = packed_logits(load(stories / name), torch.tensor(prompt + expected))[0]
    assert scores[len(prompt) - 1 : -1].argmax(-1).tolist() == expected


def packed_difference(model: Decoder, reference: Decoder, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return (packed_logits(model, ids)[0] - packed_logits(reference, ids)[0]).abs().max()


def quantised(stories: Path) -> list[dict]:
    return json.loads((stories / "gguf" / "reference_gguf.json").read_text())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_quantised_files_lose_no_more_than_the_format_does(stories, dtype):
    ids = story(stories)
    reference = load(stories / "hf")
    with torch.no_grad():
        exact = packed_logits(reference, ids)[0].log_softmax(-1)
    for entry in quantised(stories):
        model = load(stories / "gguf" / entry["file"], dtype)
        with torch.no_grad():
            scores = packed_logits(model, ids)[0].float().log_softmax(-1)
        nll = -scores[:-1].gather(1, ids[1:, None]).mean().item()
        divergence = (exact.exp() * (exact - scores)).sum(-1)[:-1].mean().item()
        # bfloat16 arithmetic adds an error of its own, about that of storing in bfloat16.
        slack = 0.002 if dtype == torch.bfloat16 else 1e-5
        assert nll <= entry["nll_on_fp32_story"] * 1.02 + slack, entry["file"]
        assert divergence <= entry["kl_vs_fp32"] * 1.02 + slack, entry["file"]
        if dtype == torch.float32:
            worst = (packed_difference(model, reference, ids)).item()
            recorded = entry["max_abs_logit_diff_vs_fp32"]
            assert worst == pytest.approx(recorded, rel=1e-3, abs=1e-3), entry["file"]


def test_the_peaks_of_a_packed_head_are_those_of_its_logits(stories):
    model = load(stories / "gguf" / "stories260K-Q4_0.gguf", torch.bfloat16)
    if not isinstance(vars(model)["_head"].weight, PackedWeight):
        pytest.skip("this processor does not multiply packed weights")
    ids = story(stories)
    with torch.inference_mode():
        hidden = model.embedded(ids)
        best = model.logits(hidden).max(dim=1)
        assert model.peaks(hidden) == list(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        )
        adapter = {
            path: (a.bfloat16(), b.bfloat16()) for path, (a, b) in random_adapter(model, 0).items()
        }
        changed = RowByRow({1: adapter}, [1] * len(hidden))
        assert model.peaks(hidden, changed) is None, "an adapter changes the head"


def test_peaks_are_left_to_the_logits_where_they_are_dense(stories):
    model = load(stories / "hf")
    assert model.peaks(torch.zeros(1, model.config.width)) is None
