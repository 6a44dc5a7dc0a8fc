"""A runtime of a few lines: no weights, no torch, answers that a test can foresee.

Stands in for `hyprstream.runtime` in `sys.modules`. `test_fakes.py` compares its signatures
with the real ones.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

from hyprstream.catalog.offer import Offer, RegistryStatus
from hyprstream.engine.request import Grammar, SamplingParams, TokenLogprobs
from hyprstream.errors import ContextTooLongError, ModelNotFoundError
from hyprstream.refs import ModelRef

DEFAULT_REF = "pypi://llm-default"
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


@dataclass(frozen=True, kw_only=True)
class FakeInfo:
    name: str = "Fake"
    path: Path = Path("/models/fake.gguf")
    format: str = "gguf"
    architecture: str = "llama"
    kind: str = "decoder"
    num_parameters: int = 134_515_008
    size_bytes: int = 98_000_000
    tensor_types: Mapping[str, int] = field(default_factory=lambda: {"Q4_1": 210, "F32": 61})
    context_length: int = 2048
    width: int = 576
    num_layers: int = 30
    num_heads: int = 9
    num_kv_heads: int = 3
    vocab_size: int = 49152
    tokenizer: str = "BPE (smollm), 49152 tokens"
    chat_template: str | None = TEMPLATE
    license: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self), "path": str(self.path)}


@dataclass(frozen=True, kw_only=True)
class FakeUsage:
    prompt_tokens: int
    completion_tokens: int


class FakeGeneration:
    def __init__(self, pieces: Iterator[str], params: SamplingParams, finish: str) -> None:
        self._pieces = pieces
        self._params = params
        self._finish = finish
        self._said: list[str] = []
        self.closed = False

    def __iter__(self) -> Iterator[SimpleNamespace]:
        for piece in self._pieces:
            self._said.append(piece)
            yield SimpleNamespace(text=piece, tokens=())

    def __enter__(self) -> "FakeGeneration":
        return self

    def __exit__(self, *_: object) -> None:
        self.closed = True

    @property
    def completion(self) -> SimpleNamespace:
        logprobs = TokenLogprobs(chosen=-0.5, top=((7, -0.5), (8, -1.5)))
        tokens = [
            SimpleNamespace(token_id=7, text=piece, logprobs=logprobs)
            for piece in self._said
            if self._params.logprobs is not None
        ]
        return SimpleNamespace(
            text="".join(self._said),
            finish_reason=self._finish,
            usage=FakeUsage(prompt_tokens=3, completion_tokens=len(self._said)),
            timings=SimpleNamespace(
                prompt_s=0.5, generate_s=2.0, prompt_tokens_per_s=6.0, tokens_per_s=1.5
            ),
            seed=self._params.seed or 1234,
            tokens=tuple(tokens),
        )


class FakeModel:
    """Says back what it was told, word by word."""

    def __init__(self, ref: str, runtime: "FakeRuntime") -> None:
        self.ref = ref
        self.info = FakeInfo(chat_template=None if ref == "plain" else TEMPLATE)
        self.default_params = runtime.default_params
        self.context_length = runtime.context_length
        self.load_s = 0.25
        self.adapter = ""
        self.tokenizer = SimpleNamespace(token_text=lambda token_id: f"<{token_id}>")
        self._runtime = runtime

    @property
    def has_chat_template(self) -> bool:
        return self.info.chat_template is not None

    def chat_tokens(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        return [0 for message in messages for _ in message["content"].split()]

    def stream(
        self, prompt: str, params: SamplingParams | None = None, **overrides: Any
    ) -> FakeGeneration:
        self._runtime.asked.append(prompt)
        return self._answer(f"continued {prompt}", params, overrides)

    def chat_stream(
        self,
        messages: Sequence[Mapping[str, str]],
        params: SamplingParams | None = None,
        **overrides: Any,
    ) -> FakeGeneration:
        num_tokens = len(self.chat_tokens(messages))
        if num_tokens >= self.context_length:
            raise ContextTooLongError(num_tokens=num_tokens, max_tokens=self.context_length)
        self._runtime.asked.append([dict(message) for message in messages])
        return self._answer(messages[-1]["content"], params, overrides)

    def _answer(
        self, text: str, params: SamplingParams | None, overrides: dict[str, Any]
    ) -> FakeGeneration:
        params = replace(params or self.default_params, **overrides)
        self._runtime.params.append(params)
        finish = "length" if params.max_tokens == 1 else "stop"
        return FakeGeneration(_say(text), params, finish)


def _say(text: str) -> Iterator[str]:
    if text == "break":
        raise RuntimeError("the fake model broke")
    for word in f"echo: {text}".split(" "):
        yield "\x1b[2J " if word == "wipe" else f"{word} "  # the code that clears a screen
        if word == "wait":  # until Ctrl-C
            threading.Event().wait()


@dataclass
class FakeCatalog:
    models: list[SimpleNamespace]
    pulled: list[tuple[bool, list[str]]] = field(default_factory=list)

    def pull(
        self, ref: ModelRef, progress: Any, *, force: bool = False, files: Sequence[str] = ()
    ) -> Path:
        self.pulled.append((force, list(files)))
        progress.start(f"fetching {ref}", 1000)
        progress.advance(1000)
        progress.done()
        return self._path(ref)

    def find(self, ref: ModelRef) -> Path:
        return self._path(ref)

    @property
    def schemes(self) -> tuple[str, ...]:
        return ("hf", "pypi")

    def list(self) -> tuple[SimpleNamespace, ...]:
        return tuple(self.models)

    def remove(self, ref: ModelRef) -> int:
        self._path(ref)
        self.models.clear()
        return 98_000_000

    def _path(self, ref: ModelRef) -> Path:
        if "missing" in ref.name:
            raise ModelNotFoundError(f"{ref} is not on this machine", hint="Fetch it.")
        return Path("/models") / ref.name


class FakeRuntime(ModuleType):
    """The module that commands import."""

    def __init__(self) -> None:
        super().__init__("hyprstream.runtime")
        self.asked: list[Any] = []
        self.params: list[SamplingParams] = []
        self.loaded: list[dict[str, Any]] = []
        self.threads: list[int] = []
        self.default_params = SamplingParams()
        self.context_length = 2048
        self.checks: list[Any] = []
        card = SimpleNamespace(
            ref=ModelRef.parse("pypi://llm-fake@1.0"), size_bytes=98_000_000, source="a wheel"
        )
        model = SimpleNamespace(
            card=card,
            path=Path("/models/fake"),
            fetched_at=datetime(2026, 1, 2, 3, 4, tzinfo=UTC),
            state="complete",
        )
        self.offers: list[Offer] = []
        self.failures: list[SimpleNamespace] = []
        self.searched: list[dict[str, Any]] = []
        self.stripped: list[str] = []
        self.statuses: list[RegistryStatus] = []
        self.catalog = FakeCatalog([model])
        self.SamplingParams = SamplingParams
        self.Grammar = Grammar
        self.Model = SimpleNamespace(load=self._load)

    def _load(self, ref: str, **options: Any) -> FakeModel:
        if "missing" in ref:
            raise ModelNotFoundError(f"{ref} is not on this machine", hint="Fetch it.")
        self.loaded.append({"ref": ref, **options})
        return FakeModel(ref, self)

    def load_settings(self) -> SimpleNamespace:
        return SimpleNamespace(model=SimpleNamespace(ref=DEFAULT_REF), registries={"acme": None})

    def set_threads(self, num_threads: int) -> None:
        self.threads.append(num_threads)

    def kept_info(self, catalog: FakeCatalog, ref: ModelRef) -> FakeInfo | None:  # noqa: ARG002
        return FakeInfo(name="Kept") if str(ref) in self.stripped else None

    def remove_weights(self, catalog: FakeCatalog, ref: ModelRef) -> int:  # noqa: ARG002
        self.stripped.append(str(ref))
        return 97_000_000

    def search_models(self, catalog: FakeCatalog, text: str, **options: Any) -> SimpleNamespace:  # noqa: ARG002
        self.searched.append({"text": text, **options})
        return SimpleNamespace(offers=self.offers, failures=self.failures)

    def registry_statuses(self, _: FakeCatalog) -> list[RegistryStatus]:
        return self.statuses

    def describe(self, path: Path) -> FakeInfo:
        return FakeInfo(path=path)

    def open_catalog(self, _: SimpleNamespace) -> FakeCatalog:
        return self.catalog

    def environment_report(self, _: SimpleNamespace) -> list[Any]:
        return self.checks
