"""`hyprstream lora` on the real runtime: a tiny model, and a store in a folder of the test."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import yaml

from hyprstream.cli.lora_shown import REACHED
from hyprstream.lora.weights import pack
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.settings import Settings
from tests.lora.adapters import random_adapter
from tests.project.pages import DOCS
from tests.runtime.adapted_models import commit, made_for, make_folder, trained


@pytest.fixture
def create(hyprstream, tiny):
    def run(*options: str, name: str = "poet"):
        return hyprstream("lora", "create", "--name", name, "--base-model", tiny.ref, *options)

    return run


@pytest.fixture
def stored(hyprstream, tiny, tmp_path):  # noqa: ARG001  # the home of the test
    """Two versions of an adapter that adds something, the second one current."""
    with open_adapters(Settings(home=tmp_path)) as adapters:
        first = commit(adapters, "poet", tiny, trained(tiny, 1))
        draft = made_for(tiny, parent=first.version)
        second = adapters.commit(pack(trained(tiny, 2)), draft)
        adapters.move("poet", second.version, expected=first.version)
    return SimpleNamespace(first=first.version, second=second.version)


def test_create_prints_a_reference_and_list_shows_it(hyprstream, create, tiny):
    result = create("--rank", "4", "--target-modules", "q_proj, down_proj")
    assert (result.code, result.out[:5]) == (0, "poet@")
    assert "low_rank" in result.err
    [row] = json.loads(hyprstream("lora", "list", "--format", "json").out)
    assert row["name"] == "poet"
    assert row["version"].startswith(result.out.strip().partition("@")[2])
    assert row["base_model"] == tiny.ref
    assert hyprstream("lora", "list", "--quiet").out == "poet\n"
    assert "poet" in hyprstream("lora", "list").out


def test_the_spec_is_what_was_asked_for(hyprstream, create):
    options = (
        "--kind tiny --rank 3 --alpha 5 --dropout 0.1 --target-modules all --sparsity 0.25 "
        "--sparsity-structure leaf --neural-compression --seed 9 --learning-rate 0.002"
    )
    assert create(*options.split()).code == 0
    info = yaml.safe_load(hyprstream("lora", "info", "poet", "--format", "yaml").out)
    wanted = {
        "kind": "tiny",
        "rank": 3,
        "alpha": 5.0,
        "dropout": 0.1,
        "sparsity": 0.25,
        "structure": "leaf",
        "mask": "seed",
        "codec": "neural",
        "seed": 9,
        "learning_rate": 0.002,
    }
    assert {name: info["spec"][name] for name in wanted} == wanted
    assert info["training"] == {"learning_rate": 0.002}
    assert "learning_rate 0.002" in hyprstream("lora", "info", "poet").out
    assert info["codec"] == "zstd", "what adds nothing is stored exactly"
    assert len(info["modules"]) == 21


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (("--rank", "0"), 2, "rank is 0"),
        (("--kind", "huge"), 2, "kind is 'huge'"),
        (("--codec", "gzip"), 5, "'gzip' is not a code"),
        (("--codec", "raw", "--neural-compression"), 2, "exclude each other"),
        (("--sparsity", "1"), 2, "sparsity is 1.0"),
        (("--learning-rate", "0"), 2, "learning_rate is 0.0"),
        (("--learning-rate", "nan"), 2, "learning_rate is nan"),
        (("--target-modules", "nothing"), 2, "no linear layer 'nothing'"),
        (("--target-modules", ""), 2, "targets is"),
        (("--kind", "tiny", "--rank", "1000"), 2, "no singular basis of rank 1000"),
    ],
)
def test_what_cannot_be_made_is_refused(hyprstream, create, options, code, message):
    result = create(*options)
    assert (result.code, result.out) == (code, "")
    assert message in result.err
    assert "\nhint: " in result.err
    assert json.loads(hyprstream("lora", "list", "--format", "json").out) == []


@pytest.mark.parametrize("name", ["../x", "a b", "", "x:y"])
def test_a_name_that_is_none_is_refused(create, name):
    assert create(name=name).code == 2


def test_a_name_that_is_taken_is_refused_before_a_model_is_loaded(hyprstream, create):
    create()
    result = hyprstream("lora", "create", "--name", "poet", "--base-model", "/nothing/here")
    assert result.code == 4
    assert "already" in result.err


@pytest.mark.parametrize("sparsity", ["0.9", "0.95", "0.99"])
def test_the_price_of_sparsity_is_told(create, sparsity):
    result = create("--sparsity", sparsity)
    assert f"warning: at sparsity {float(sparsity):.0%}, low_rank adapters reached" in result.err


def test_the_prices_that_are_told_are_those_of_the_documents():
    page = (DOCS / "reference" / "adapters.md").read_text("utf-8")
    for kind, prices in REACHED.items():
        for sparsity, reached in prices.items():
            [row] = [r for r in page.splitlines() if r.startswith(f"| `{kind}` | {sparsity:.0%} |")]
            assert round(float(row.split("|")[-2])) == reached


def test_little_sparsity_has_no_price_to_tell(create):
    assert "warning" not in create("--sparsity", "0.5").err


def test_an_adapter_changes_the_answer_and_no_more(hyprstream, tiny, stored):
    ask = ("--prompt", "abc", "--temperature", "0", "--max-tokens", "9")
    expected = tiny.adapted(trained(tiny, 2)).stream("abc", temperature=0, max_tokens=9)
    text = "".join(delta.text for delta in expected)
    plain = hyprstream("infer", tiny.ref, "--raw", *ask).out
    assert hyprstream("lora", "infer", "poet", "--raw", *ask).out == f"{text}\n" != plain
    assert hyprstream("infer", "--adapter", "poet", "--raw", *ask).out == f"{text}\n"
    assert hyprstream("infer", tiny.ref, "--raw", *ask).out == plain
    answer = hyprstream("lora", "infer", f"poet@{stored.first[:8]}", *ask, "--format", "json")
    assert json.loads(answer.out)["adapter"] == f"poet@{stored.first[:12]}"


def test_chatting_with_an_adapter_is_chatting_with_the_adapted_model(hyprstream, tiny, stored):
    options = ("--temperature", "0", "--max-tokens", "5")
    messages = [{"role": "user", "content": "hi"}]
    expected = tiny.adapted(trained(tiny, 2)).chat(messages, temperature=0, max_tokens=5).text
    by_option = hyprstream("chat", tiny.ref, "--adapter", "poet", *options, stdin="hi\n")
    by_name = hyprstream("lora", "chat", "poet", *options, stdin="hi\n")
    assert by_option.out == by_name.out == f"{expected}\n"
    assert stored.second


def test_rollback_and_promote_move_the_name(hyprstream, stored):
    assert hyprstream("lora", "rollback", "poet", "--why", "worse").out == (
        f"poet@{stored.first[:12]}\n"
    )
    assert hyprstream("lora", "rollback", "poet").code == 3
    again = hyprstream("lora", "promote", f"poet@{stored.second[:6]}")
    assert again.out == f"poet@{stored.second[:12]}\n"
    moves = json.loads(hyprstream("lora", "history", "poet", "--format", "json").out)
    assert [move["action"] for move in moves] == ["create", "promote", "rollback", "promote"]
    assert moves[2] | {"at": ""} == {
        "version": stored.first,
        "action": "rollback",
        "at": "",
        "by": "hyprstream lora",
        "why": "worse",
    }
    assert hyprstream("lora", "history", "poet", "-q").out.split()[0] == stored.first
    assert "rollback" in hyprstream("lora", "history", "poet").out


def test_compress_makes_a_smaller_version_and_can_leave_the_name_alone(hyprstream, stored):
    result = hyprstream("lora", "compress", "poet", "--error", "0.3", "--tag", "small")
    assert result.code == 0
    assert "error 0." in result.err
    info = json.loads(hyprstream("lora", "info", "poet:small", "--format", "json").out)
    assert (info["codec"], info["parent"], info["tags"]) == ("neural", stored.second, ["small"])
    assert 0.2 < info["metrics"]["relative_error"] <= 0.3
    assert info["ratio_float32"] > 5
    current = json.loads(hyprstream("lora", "info", "poet", "--format", "json").out)
    assert current["version"] == stored.second
    assert "every bit kept" in hyprstream("lora", "compress", "poet", "--codec", "raw").err
    wrong = hyprstream("lora", "compress", "poet", "--codec", "zstd", "--error", "0.1")
    assert wrong.code == 2


def test_diff_tells_what_changed(hyprstream, stored):
    hyprstream("lora", "compress", "poet", "--error", "0.1")
    diff = json.loads(
        hyprstream("lora", "diff", f"poet@{stored.second}", "poet", "--format", "json").out
    )
    assert diff["spec"]["stored as"] == {"first": "zstd", "second": "neural"}
    before, change = (
        math.hypot(*(module[key] for module in diff["modules"]))
        for key in ("norm_before", "norm_of_change")
    )
    assert 0.05 < change / before < 0.11
    table = hyprstream("lora", "diff", f"poet@{stored.first}", "poet").out
    assert "stored as  zstd -> neural" in table
    assert "layers.0.mlp.up_proj" in table


def test_diff_is_short_where_nothing_changed(hyprstream, stored):
    same = hyprstream("lora", "diff", "poet", f"poet@{stored.second}")
    assert (same.code, same.out) == (0, "spec  the same\n")
    assert same.err == "21 layers are the same\n"


def test_info_draws_norm_and_density(hyprstream, stored):
    result = hyprstream("lora", "info", "poet", "--plot", "--include-stats")
    assert result.code == 0
    assert "voxels in" in result.out
    lines = result.out.splitlines()
    drawn = lines[lines.index(next(line for line in lines if line.startswith("norm of"))) :]
    [row] = [line for line in drawn[1:8] if "self_attn.q_proj" in line]
    blocks = row.split()[-1]
    assert len(blocks) == 3
    assert set(blocks) <= set("▁▂▃▄▅▆▇█")
    assert "█" in "".join(drawn[1:8])
    assert all("███" in line for line in drawn[9:])
    both = hyprstream("lora", "info", "poet", "--plot", "--format", "json")
    assert (both.code, both.out) == (2, "")
    stats = json.loads(
        hyprstream("lora", "info", "poet", "--include-stats", "--format", "json").out
    )["grid"]
    assert stats["num_voxels"] == stats["leaf_density"] * 512 * stats["num_leaves"]
    assert stored.second


def test_delete_asks_and_deletes(hyprstream, stored):
    refused = hyprstream("lora", "delete", "poet")
    assert (refused.code, stored.second != stored.first) == (2, True)
    assert hyprstream("lora", "delete", "poet", "--yes").code == 0
    assert hyprstream("lora", "delete", "poet", "--yes").code == 3
    assert hyprstream("lora", "info", "poet").code == 3


def test_an_adapter_of_another_model_is_refused_unless_forced(hyprstream, tiny, stored, tmp_path):
    other = Model.load(make_folder(tmp_path / "other", seed=1), settings=Settings(home=tmp_path))
    ask = ("--base-model", other.ref, "--prompt", "abc", "--max-tokens", "2", "--raw")
    result = hyprstream("lora", "infer", "poet", *ask)
    assert (result.code, result.out) == (4, "")
    assert str(other.fingerprint) in result.err
    assert str(tiny.fingerprint) in result.err
    forced = hyprstream("lora", "infer", "poet", *ask, "--force")
    assert forced.code == 0
    assert "none of its measurements hold" in forced.err
    assert stored.second


def test_a_model_that_is_gone_is_named(hyprstream, tmp_path):
    gone = Model.load(make_folder(tmp_path / "gone"), settings=Settings(home=tmp_path))
    with open_adapters(Settings(home=tmp_path)) as adapters:
        commit(adapters, "poet", gone, trained(gone, 1))
    (tmp_path / "gone").rename(tmp_path / "moved")
    result = hyprstream("lora", "infer", "poet", "--prompt", "abc")
    assert result.code == 3
    assert gone.ref in result.err
    moved = ("--base-model", str(tmp_path / "moved"), "--max-tokens", "2")
    assert hyprstream("lora", "infer", "poet", "--prompt", "abc", *moved).code == 0


@pytest.mark.parametrize("command", ["info", "infer", "compress"])
@pytest.mark.parametrize("payload", [b"", b"\x00" * 100, b"NanoVDB2" + b"\xff" * 500])
def test_a_hostile_payload_is_a_clear_error(hyprstream, tiny, tmp_path, command, payload):
    with open_adapters(Settings(home=tmp_path)) as adapters:
        version = adapters._store.commit(payload, made_for(tiny, "raw"))
        adapters.create("poet", version)
    options = ("--prompt", "abc") if command == "infer" else ()
    result = hyprstream("lora", command, "poet", *options)
    assert (result.code, result.out) in [(7, ""), (5, "")]
    assert result.err.startswith("error: ")
    assert "hint: " in result.err


_ROOT_OPTIONS = {"HYPRSTREAM_CONFIG": "/nonexistent/hyprstream.toml", "OMP_NUM_THREADS": "1"}


def _process(home, *arguments: str, program: tuple[str, ...] = ("-m", "hyprstream")):
    environment = {**os.environ, **_ROOT_OPTIONS, "HYPRSTREAM_HOME": str(home)}
    return subprocess.run(
        [sys.executable, *program, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
        stdin=subprocess.DEVNULL,
    )


@pytest.mark.slow
def test_the_whole_way_in_processes_of_their_own_on_a_real_model(test_data, tmp_path):
    folder = str(test_data / "stories260K" / "hf")
    ask = ("--prompt", "Once upon a time", "--max-tokens", "12", "--temperature", "0")
    made = _process(
        *(tmp_path, "lora", "create", "--name", "poet", "--base-model", folder),
        *("--target-modules", "all", "--rank", "4"),
    )
    assert made.returncode == 0, made.stderr
    model = Model.load(folder, settings=Settings(home=tmp_path))
    plain = model.generate(ask[1], max_tokens=12, temperature=0).text
    fresh = _process(tmp_path, "lora", "infer", "poet", *ask)
    assert fresh.stdout == f"{plain}\n", fresh.stderr
    linears = {p: s for p, s in model.decoder.linears.items() if p != "lm_head"}
    weights = random_adapter(linears, [4], seed=1)
    with open_adapters(Settings(home=tmp_path)) as adapters:
        old = adapters.resolve("poet")
        new = adapters.commit(pack(weights), made_for(model, "raw", parent=old))
        adapters.move("poet", new.version, expected=old)
    expected = model.adapted(weights).generate(ask[1], max_tokens=12, temperature=0).text
    adapted = _process(tmp_path, "lora", "infer", "poet", *ask)
    assert adapted.stdout == f"{expected}\n" != fresh.stdout

    back = _process(tmp_path, "lora", "rollback", "poet")
    assert back.stdout == made.stdout


@pytest.mark.parametrize("command", [("list",), ("history", "poet"), ("info", "poet")])
def test_what_only_looks_imports_no_torch(hyprstream, stored, tmp_path, command):
    program = (
        "import sys\n"
        "from hyprstream.cli.main import run\n"
        f"assert run(['lora', *{command!r}]) == 0\n"
        "assert not {'torch', 'tokenizers'} & sys.modules.keys()"
    )
    done = _process(tmp_path, program=("-c", program))
    assert (done.returncode, done.stderr) == (0, "")
    assert stored.second[:12] in done.stdout
    assert hyprstream
