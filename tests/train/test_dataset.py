"""Duplicates, the side a prompt falls on, and what is told of a data set."""

import dataclasses
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hyprstream.errors import InvalidDatasetError, InvalidSettingsError
from hyprstream.train.dataset import DataConfig, read_dataset
from hyprstream.train.split import is_held_out, read_records, split_records, without_duplicates
from tests.train.makers import BPE, SPM, maker, whole, write

ROWS = [{"prompt": f"what is {n}", "completion": f" it is {n}"} for n in range(60)]
HALF = DataConfig(held_out_share=0.5)


def test_duplicates_count_once_whatever_their_white_space(tmp_path):
    rows = [ROWS[0], {"prompt": " what  is\n0", "completion": "it is 0 "}, ROWS[1], ROWS[0]]
    found = read_dataset([write(tmp_path, *rows)], maker(), DataConfig(held_out_share=0))
    assert len(found.trained.samples) == 2
    assert (found.report.num_records, found.report.num_duplicates) == (4, 2)
    assert whole(BPE, found.trained.samples[0]).startswith("what is 0")


def test_a_prompt_is_on_one_side_whatever_the_order_and_the_file(tmp_path):
    first = read_dataset([write(tmp_path, *ROWS)], maker(), HALF)
    shuffled = random.Random(1).sample(ROWS, len(ROWS))  # noqa: S311  # an order
    files = [write(tmp_path, *rows, name=f"{n}.jsonl") for n, rows in
             enumerate((shuffled[:20], shuffled[20:]))]  # fmt: skip
    again = read_dataset(files, maker(), HALF)
    assert set(again.trained.samples) == set(first.trained.samples)
    assert set(again.held_out.samples) == set(first.held_out.samples)
    assert 10 < len(first.held_out.samples) < 50


def test_the_side_of_a_prompt_is_that_of_earlier_versions():
    """Else a later version would judge by what an earlier one has learnt."""
    assert [n for n in range(40) if is_held_out(f"question {n}", 0.1)] == [1]


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    prompts=st.lists(st.sampled_from(["a", "b b", "c", " b  b", "d"]), min_size=1, max_size=12),
    share=st.floats(0, 0.9),
)
def test_no_question_is_on_both_sides(tmp_path, prompts, share):
    rows = [{"prompt": prompt, "completion": str(n)} for n, prompt in enumerate(prompts)]
    records = list(without_duplicates(read_records([write(tmp_path, *rows)])))
    assert len(records) == len(rows)
    sides = split_records(records, share)
    asked = [{" ".join(p.record.prompt.split()) for p in side} for side in sides]  # type: ignore[union-attr]
    assert not asked[0] & asked[1]
    assert sum(map(len, sides)) == len(rows)


def test_files_can_say_what_is_judged_by(tmp_path):
    data = write(tmp_path, *ROWS[:20], name="train.jsonl")
    again = {"prompt": " what is  3", "completion": " something else"}
    judging = write(tmp_path, *ROWS[20:30], ROWS[2], again, name="valid.jsonl")
    found = read_dataset([data], maker(), HALF, held_out=[judging])
    assert (len(found.trained.samples), len(found.held_out.samples)) == (18, 12)
    assert (found.report.num_judged_by, found.report.num_duplicates) == (1, 1)
    asked = [whole(BPE, sample) for sample in found.trained.samples]
    assert not [text for text in asked if "what is 2 " in text or "what is 3 " in text]


def test_windows_of_texts_to_judge_by_are_all_judged_by(tmp_path):
    for name in ("train.txt", "valid.txt"):
        (tmp_path / name).write_text(" ".join(f"{name} {n}" for n in range(400)))
    found = read_dataset(
        [tmp_path / "train.txt"], maker(max_tokens=64), HALF, held_out=[tmp_path / "valid.txt"]
    )
    for part, other in ((found.trained, "valid"), (found.held_out, "train")):
        assert len(part.samples) > 3
        assert not any(other in whole(BPE, sample) for sample in part.samples)


def test_windows_of_a_text_are_split_among_themselves(tmp_path):
    file = tmp_path / "play.txt"
    file.write_text(" ".join(f"line {n} of a play." for n in range(300)))
    short = maker(SPM, max_tokens=16)
    found = read_dataset([file], short, HALF)
    everything = read_dataset([file], short, dataclasses.replace(HALF, held_out_share=0))
    sides = found.trained.samples + found.held_out.samples
    assert sorted(s.token_ids for s in sides) == sorted(
        s.token_ids for s in everything.trained.samples
    )
    assert len(found.trained.samples) > 20
    assert len(found.held_out.samples) > 20


def test_the_report_counts(tmp_path):
    long = {"prompt": "ab " * 200, "completion": "c"}
    late = {"prompt": "x", "completion": "cd " * 400}
    up = {"prompt": "p", "completion": "q", "label": True}
    pair = {"prompt": "p", "chosen": "q", "rejected": "r"}
    file = write(tmp_path, *ROWS[:5], ROWS[0], long, late, up, pair)
    short = maker(max_tokens=100)
    found = read_dataset([file], short, DataConfig(held_out_share=0, too_long="cut"))
    report = found.report
    assert (report.num_records, report.num_duplicates) == (10, 1)
    assert (report.num_skipped, report.num_cut) == (1, 1), "of one the prompt alone is too long"
    part = found.trained
    assert (len(part.samples), len(part.pairs), len(part.judged)) == (6, 1, 1)
    assert report.num_trained == len(part) == 8
    kept = [*part.samples, part.pairs[0].chosen, part.pairs[0].rejected, part.judged[0].sample]
    lengths = sorted(sample.num_computed for sample in kept)
    assert report.num_tokens == sum(lengths)
    assert report.num_counted == sum(sum(sample.counts[1:]) for sample in kept)
    assert report.lengths == {50: lengths[4], 90: lengths[7], 99: lengths[7], 100: 100}
    skipped = read_dataset([file], short, DataConfig(held_out_share=0))
    assert skipped.report.num_skipped == 2
    with pytest.raises(InvalidDatasetError, match=r"line 7: .* more than 100"):
        read_dataset([file], short, DataConfig(held_out_share=0, too_long="refuse"))


def test_nothing_to_train_on_is_refused(tmp_path):
    file = write(tmp_path, {"prompt": "a" * 900, "completion": "b"})
    with pytest.raises(InvalidDatasetError, match="1 were longer than 100 tokens"):
        read_dataset([file], maker(max_tokens=100), DataConfig())
    with pytest.raises(InvalidDatasetError, match="more than 3 samples") as failure:
        read_dataset([write(tmp_path, *ROWS)], maker(), DataConfig(max_samples=3))
    assert failure.value.line is not None


def test_white_space_in_a_chat_makes_no_other_record(tmp_path):
    def chat(asked, said):
        turns = (("user", asked), ("assistant", said))
        return {"messages": [{"role": role, "content": text} for role, text in turns]}

    file = write(tmp_path, chat("a b", "c"), chat(" a\nb", "c\t"), chat("ab", "c"))
    found = read_dataset([file], maker(), DataConfig(held_out_share=0))
    assert found.report.num_duplicates == 1


@pytest.mark.parametrize(
    "wrong", [{"held_out_share": 1}, {"held_out_share": -1}, {"max_samples": 0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(InvalidSettingsError):
        DataConfig(**wrong)
