"""Names, tags and room: `hyprstream lora tag|delete|cleanup` on a store in a folder of the test."""

import json
from types import SimpleNamespace

import pytest

from hyprstream.lora.weights import pack
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.settings import Settings
from tests.runtime.adapted_models import commit, made_for, trained


@pytest.fixture
def stored(hyprstream, tiny, tmp_path):  # noqa: ARG001  # the home of the test
    """An adapter of two versions, the second one current, and one that nothing leads to."""
    with open_adapters(Settings(home=tmp_path)) as adapters:
        first = commit(adapters, "poet", tiny, trained(tiny, 1))
        draft = made_for(tiny, parent=first.version)
        second = adapters.commit(pack(trained(tiny, 2)), draft)
        adapters.move("poet", second.version, expected=first.version)
        loose = adapters.commit(pack(trained(tiny, 3)), made_for(tiny))
    return SimpleNamespace(first=first.version, second=second.version, loose=loose.version)


def payloads(home):
    return len(list((home / "adapters" / "payloads").iterdir()))


def test_a_tag_is_put_moved_listed_and_taken_away(hyprstream, stored):
    put = hyprstream("lora", "tag", f"poet@{stored.first[:8]}", "stable")
    assert (put.code, put.out) == (0, "poet:stable\n")
    assert f"poet:stable stands for {stored.first[:12]}\n" in put.err
    moved = hyprstream("lora", "tag", "poet", "stable")
    assert moved.err == (
        f"poet:stable stands for {stored.second[:12]} instead of {stored.first[:12]}\n"
    )
    assert hyprstream("lora", "tag", f"poet@{stored.first[:8]}", "old").code == 0
    rows = json.loads(hyprstream("lora", "tag", "poet", "--list", "--format", "json").out)
    assert rows == [
        {"tag": "old", "version": stored.first},
        {"tag": "stable", "version": stored.second},
    ]
    assert hyprstream("lora", "tag", "poet", "--quiet").out == "old\nstable\n"
    assert f"old     {stored.first[:12]}" in hyprstream("lora", "tag", "poet").out
    assert hyprstream("lora", "tag", "poet", "old", "--delete").code == 0
    assert hyprstream("lora", "tag", "poet:stable", "--delete").code == 0
    none = hyprstream("lora", "tag", "poet")
    assert (none.code, none.out) == (0, "")
    assert "has no tag" in none.err


def test_a_tag_is_understood_wherever_an_adapter_is_named(hyprstream, tiny, stored, tmp_path):
    hyprstream("lora", "tag", f"poet@{stored.first[:8]}", "v1.0")
    ask = ("--prompt", "abc", "--temperature", "0", "--max-tokens", "5")
    by_id = f"poet@{stored.first[:8]}"
    for command in (("lora", "infer", "{}"), ("infer", "--adapter", "{}")):
        one, other = (
            hyprstream(*(word.format(ref) for word in command), *ask)
            for ref in ("poet:v1.0", by_id)
        )
        assert (one.code, one.out) == (0, other.out)
    info = json.loads(hyprstream("lora", "info", "poet:v1.0", "--format", "json").out)
    assert (info["version"], info["tags"]) == (stored.first, ["v1.0"])
    assert hyprstream("lora", "diff", "poet:v1.0", by_id).code == 0
    out = ("--output", str(tmp_path / "out"))
    assert hyprstream("lora", "export", "poet:v1.0", *out).code == 0
    assert hyprstream("lora", "compress", "poet:v1.0", "--codec", "raw", "--tag", "v2").code == 0
    assert hyprstream("lora", "tag", "poet:v2", "v3").out == "poet:v3\n"
    assert hyprstream("lora", "promote", "poet:v1.0").out == f"poet@{stored.first[:12]}\n"
    assert tiny


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("nobody", "stable"), 3, "no adapter 'nobody'"),
        (("nobody",), 3, "no adapter 'nobody'"),
        (("nobody", "x", "--delete"), 3, "has no tag 'x'"),
        (("poet", "none", "--delete"), 3, "has no tag 'none'"),
        (("poet:none",), 2, "is one version"),
        (("poet@abcd", "--list"), 2, "is one version"),
        (("poet@abcd", "x"), 3, "no version that begins with abcd"),
        (("poet", "--delete"), 2, "names no tag"),
        (("poet", "a:b"), 2, "is not a tag"),
        (("poet", "a b"), 2, "is not a tag"),
        (("poet", "../x"), 2, "is not a tag"),
        (("poet", ""), 2, "is not a tag"),
        (("poet", "\u00fc"), 2, "is not a tag"),
        (("poet", "x", "--list"), 2, "lists all tags"),
        (("poet", "--list", "--delete"), 2, "lists all tags"),
        (("poet:a", "b", "--delete"), 2, "is not a tag"),
    ],
)
def test_what_is_no_tag_is_refused(hyprstream, stored, arguments, code, message):
    result = hyprstream("lora", "tag", *arguments)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "\nhint: " in result.err
    assert stored.second


def test_delete_frees_the_room_at_once(hyprstream, stored, tmp_path):
    assert payloads(tmp_path) == 3
    done = hyprstream("lora", "delete", "poet", "--yes")
    assert done.err.startswith("deleted poet: 2 versions removed, ")
    assert payloads(tmp_path) == 1, "what has no name yet stays"
    assert stored.loose


def test_delete_leaves_what_another_name_needs(hyprstream, stored, tmp_path):
    with open_adapters(Settings(home=tmp_path)) as adapters:
        adapters.create("other", stored.first)
    done = hyprstream("lora", "delete", "poet", "--yes")
    assert done.err.startswith("deleted poet: 1 version removed, ")
    assert hyprstream("lora", "info", "other").code == 0


def test_cleanup_removes_what_nothing_leads_to(hyprstream, stored, tmp_path):
    assert hyprstream("lora", "cleanup").err == "0 versions removed, 0 B freed\n"
    refused = hyprstream("lora", "cleanup", "--now")
    assert (refused.code, payloads(tmp_path)) == (2, 3)
    done = hyprstream("lora", "cleanup", "--now", "--yes")
    assert done.err.startswith("1 version removed, ")
    assert hyprstream("lora", "rollback", "poet").out == f"poet@{stored.first[:12]}\n"
    hyprstream("lora", "promote", f"poet@{stored.second[:8]}")
    done = hyprstream("lora", "cleanup", "--keep-history", "0", "--now", "--yes")
    assert (done.code, payloads(tmp_path)) == (0, 1)
    assert hyprstream("lora", "info", "poet").code == 0
    gone = hyprstream("lora", "rollback", "poet")
    assert (gone.code, "collected" in gone.err) == (3, True)
    assert hyprstream("lora", "cleanup", "--keep-history", "-1", "--yes").code == 2
