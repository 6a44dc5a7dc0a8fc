"""Samples that people send: records to tokens of the base model, and into the buffer.

They are written through the same chat template as the model's prompts are. No weights are
loaded for that.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from hyprstream.errors import InvalidInputError, InvalidRequestError, NotFoundError
from hyprstream.models.fingerprint import fingerprint
from hyprstream.models.load import open_model
from hyprstream.refs import ModelRef, adapter_name
from hyprstream.runtime.adapted import base_model_ref
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.learning import open_buffer
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.training_data import maker_for
from hyprstream.store.manifest import check_base
from hyprstream.train.buffer import Added
from hyprstream.train.dataset import MAX_SAMPLES
from hyprstream.train.encode import SampleMaker
from hyprstream.train.records import Chat, Completion, Form, Lesson, Preference, Rated
from hyprstream.train.sample import Sample
from hyprstream.train.split import read_records

_JUDGED = frozenset({"published", "canary", "rejected", "failed"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of samples that were sent.

    Attributes:
        source: Under which name the journal has them.
        counts: How many of them wait, are held out, are duplicates, found no room, or are too
            long.
        num_waiting: Samples of the adapter that wait to be learnt from now.
        num_held_out: Samples of it that versions are judged by.
    """

    source: str
    counts: Mapping[Added, int] = field(default_factory=dict)
    num_waiting: int = 0
    num_held_out: int = 0

    @property
    def num_kept(self) -> int:
        """Samples that were kept."""
        return self.counts.get("waiting", 0) + self.counts.get("held_out", 0)


def conversation(prompt: str, answer: str, *, system: str = "") -> Callable[[SampleMaker], Lesson]:
    """Return what makes a record of one exchange: a chat, for models that know chats.

    Raises:
        InvalidRequestError: The prompt or the answer is empty.
    """
    for what, text in (("prompt", prompt), ("answer", answer)):
        if not text.strip():
            raise InvalidRequestError(
                f"the {what} is empty", hint="Give both what is asked and what is to be answered."
            )

    def made(maker: SampleMaker) -> Lesson:
        if maker.template is None:
            if system:
                raise InvalidRequestError(
                    "the model has no chat template, and so no system message",
                    hint="Put it into the prompt.",
                )
            return Completion(prompt=prompt, answer=answer)
        turns = (("system", system), ("user", prompt), ("assistant", answer))
        return Chat(messages=tuple({"role": r, "content": text} for r, text in turns if text))

    return made


def samples_of_files(files: Iterable[Path], form: Form | None, maker: SampleMaker) -> list[Sample]:
    """Return the samples of files of records, whatever their length.

    Raises:
        InvalidDatasetError: A file cannot be read, holds what cannot be learnt as it stands, or
            too many samples.
    """
    found: list[Sample] = []
    for placed in read_records(files, form):
        record = placed.record
        if isinstance(record, Preference | Rated):
            raise placed.wrong("a choice between answers is learnt with --data, not as a sample")
        try:
            found += maker.samples(record)
        except InvalidInputError as error:
            raise placed.wrong(error) from error
        if len(found) > MAX_SAMPLES:
            raise placed.wrong(f"more than {MAX_SAMPLES} samples")
    return found


def sample_maker(
    adapters: Adapters, name: str, settings: Settings, base_model: str | None = None
) -> SampleMaker:
    """Return what makes samples for an adapter, without loading its model.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        ModelNotFoundError: Its model is not on this machine.
        IncompatibleAdapterError: The model is another one.
    """
    ref = base_model or base_model_ref(adapters, name, settings)
    opened = open_model(open_catalog(settings).find(ModelRef.parse(ref)))
    found = fingerprint(opened, name=ref, cache=settings.fingerprints_folder)
    check_base(adapters.manifest(adapters.resolve(name)), found, force=False)
    # Of a text one token is taken twice: as the last of a window and the first of the next.
    longest = min(opened.config.context_length, settings.train.buffer.max_sample_tokens - 1)
    return maker_for(opened.tokenizer(), longest)


def send_samples(
    adapters: Adapters, name: str, settings: Settings, samples: Iterable[Sample]
) -> Sent:
    """Keep samples for an adapter to learn from; they are on the disk when this returns.

    It ends at the first sample for which there is no room.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        CacheBusyError: A process that learns has the journal.
        StorageFullError: The disk is full.
    """
    known = adapter_name(name)
    adapters.resolve(known)
    journal, buffer = open_buffer(adapters, settings.journal_file, settings.train)
    source = f"sent-{int(time.time())}-{secrets.token_hex(4)}"
    counts: Counter[Added] = Counter()
    try:
        for sample in samples:
            became = buffer.add(known, sample, source)
            counts[became] += 1
            if became == "full":
                break
    finally:
        journal.close()
    return Sent(
        source=source,
        counts=dict(counts),
        num_waiting=buffer.num_waiting(known),
        num_held_out=buffer.num_held_out(known),
    )


def retry_samples(adapters: Adapters, name: str, settings: Settings) -> int:
    """Let the samples of the last version that was not published wait again; return how many.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        CacheBusyError: A process that learns has the journal.
        NotFoundError: No version was rejected since the last one that was published.
    """
    known = adapter_name(name)
    born = adapters.history(known)[0].at.timestamp()
    journal, _ = open_buffer(adapters, settings.journal_file, settings.train)
    try:
        made = [d for d in journal.decisions(known, since=born) if d.action in _JUDGED]
        if not made or made[-1].action in ("published", "canary"):
            raise NotFoundError(
                f"no version of {known} was rejected last", hint="Send samples, and start."
            )
        return journal.revive(made[-1].samples)
    finally:
        journal.close()
