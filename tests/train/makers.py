"""Makers of samples on small vocabularies, and files of rows."""

import json
from pathlib import Path

from hyprstream.models.chat import ChatTemplate
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.train.encode import SampleMaker
from hyprstream.train.records import Preference, Rated, parse_record
from hyprstream.train.sample import Sample
from tests.models.vocabularies import bpe_metadata, spm_metadata

CHATML = ChatTemplate(
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    {},
)
FORGETFUL = ChatTemplate(
    "{% for m in messages %}{% if m.role == 'user' or loop.last %}<|im_start|>{{ m.role }}\n"
    "{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}",
    {},
)
BPE = Tokenizer.from_gguf(bpe_metadata())
SPM = Tokenizer.from_gguf(spm_metadata())


def maker(tokenizer=BPE, template=CHATML, max_tokens: int = 500) -> SampleMaker:
    return SampleMaker(tokenizer=tokenizer, template=template, max_tokens=max_tokens)


def made(row, tokenizer=BPE, template=CHATML, max_tokens: int = 500) -> list[Sample]:
    """The samples of a row that is no choice between answers."""
    record = parse_record(row)
    assert not isinstance(record, Preference | Rated)
    return maker(tokenizer, template, max_tokens).samples(record)


def counted(tokenizer: Tokenizer, sample: Sample) -> str:
    """The text that counts, control tokens included."""
    pairs = zip(sample.token_ids, sample.counts, strict=True)
    return tokenizer.decode([i for i, counts in pairs if counts], skip_special=False)


def whole(tokenizer: Tokenizer, sample: Sample) -> str:
    return tokenizer.decode(sample.token_ids, skip_special=False)


def write(folder: Path, *lines: object, name: str = "samples.jsonl") -> Path:
    file = folder / name
    data = [line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines]
    file.write_bytes(b"\n".join(data) + b"\n")
    return file
