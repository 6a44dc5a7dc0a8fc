"""Verdicts on damaged files, within 2 seconds and 200 MB each."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.checkpoint import forge, judge, test_gguf, test_safetensors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")

MAX_SECONDS = 2


def judged(folder: Path) -> dict[str, tuple[str, float]]:
    command = [sys.executable, judge.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=50)
    return {
        name: (verdict, seconds) for name, (verdict, seconds) in json.loads(done.stdout).items()
    }


@pytest.mark.parametrize("kind", ["gguf", "safetensors"])
def test_every_file_of_the_test_data_gets_its_verdict(test_data, kind):
    expected = json.loads((test_data / "malformed" / "expected.json").read_text())[kind]
    results = judged(test_data / "malformed" / kind)
    assert results.keys() == expected.keys()
    for name, (verdict, seconds) in results.items():
        assert verdict in expected[name]["expect"].split("-or-"), (name, verdict)
        assert seconds < MAX_SECONDS, name


def hostile() -> dict[str, bytes]:
    """Files of a few megabytes that cost a trusting reader gigabytes or minutes."""
    many_keys = [forge.entry(str(number), forge.U8, b"\0") for number in range(70_000)]
    strings = [forge.text("ab")] * 2_200_000
    long_string = (10**9).to_bytes(8, "little")
    long_shape = {"dtype": "U8", "shape": [1] * 10**6, "data_offsets": [0, 1]}
    return {
        "many keys": forge.gguf(many_keys),
        "many strings": forge.gguf(
            [forge.entry("k", forge.ARRAY, forge.array(forge.STRING, strings))]
        ),
        "long string": forge.gguf([forge.entry("k", forge.STRING, long_string)], [], bytes(10**6)),
        "empty lists": forge.safetensors(b'{"a":[' + b"[]," * 10**7 + b"[]]}"),
        "numbers": forge.safetensors(b'{"a":[' + b"1000," * 6 * 10**6 + b"1]}"),
        "long name": forge.safetensors(b'{"' + b"a" * 4 * 10**7 + b'":1}'),
        "long shape": forge.safetensors({"a": long_shape}, b"\0"),
    }


def test_damaged_files_stay_within_the_limits(tmp_path):
    cases = hostile()
    cases |= {name: data for name, (data, _) in test_gguf.DAMAGED.items()}
    cases |= {name: data for name, (data, _) in test_safetensors.DAMAGED.items()}
    cases |= {"sound GGUF": forge.sound_gguf(), "sound safetensors": forge.sound_safetensors()}
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    for name, (verdict, seconds) in judged(tmp_path).items():
        assert verdict == ("accept" if name.startswith("sound") else "reject"), name
        assert seconds < MAX_SECONDS, name
