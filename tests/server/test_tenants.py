"""Callers with different keys do not notice each other's prompts."""

import re
import secrets

from tests.server.conftest import Served

_PROMPT = "The same long story is told to everybody, word by word: " * 4


def found(served: Served) -> int:
    """Tokens of prompts that were found among those computed before."""
    with served.client() as client:
        text = client.get("/metrics").text
    (value,) = re.findall(r"^hyprstream_prefix_hit_tokens_total\S* ([\d.e+]+)$", text, re.M)
    return int(float(value))


def ask(served: Served, key: str, prompt: str) -> str:
    body = {"prompt": prompt, "max_tokens": 2, "temperature": 0}
    with served.client(key) as client:
        answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    text: str = answer.json()["choices"][0]["text"]
    return text


def test_a_prompt_is_found_again_by_its_own_key_alone(served: Served) -> None:
    # Else whoever measures the time of an answer learns what others have asked.
    prompt = secrets.token_hex(4) + _PROMPT
    first = ask(served, "inference", prompt)
    before = found(served)
    assert ask(served, "all", prompt) == first
    assert found(served) == before
    assert ask(served, "inference", prompt) == first
    assert found(served) > before
