"""Files of records to the samples of one model: those to train on, and those to judge by."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hyprstream.errors import InvalidDatasetError, InvalidInputError, InvalidSettingsError
from hyprstream.train.augment import AugmentConfig, Copier
from hyprstream.train.encode import SampleMaker, TooLong
from hyprstream.train.records import Form, Lesson, Preference, Rated, Record, Text, content_of
from hyprstream.train.sample import Judged, Pair, Sample
from hyprstream.train.split import (
    Placed,
    is_held_out,
    read_records,
    split_files,
    split_records,
    without_duplicates,
)

MAX_SAMPLES = 100_000

_PERCENTILES = (50, 90, 99, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class DataConfig:
    """How files become a data set."""

    form: Form | None = None
    """The form of all records; None reads what the keys of each show."""
    held_out_share: float = 0.1
    """Share of prompts that are not trained on, 0 to 0.9."""
    too_long: TooLong = "skip"
    """What happens to samples that are longer than the model's: refuse, skip or cut."""
    max_samples: int = MAX_SAMPLES
    """Most samples; a file with more is refused."""

    def __post_init__(self) -> None:
        """Reject values outside their range.

        Raises:
            InvalidSettingsError: A field is wrong.
        """
        if not 0 <= self.held_out_share <= 0.9:
            raise InvalidSettingsError(
                f"held_out_share is {self.held_out_share}", hint="Make it 0 to 0.9."
            )
        if self.max_samples < 1:
            raise InvalidSettingsError(
                f"max_samples is {self.max_samples}", hint="Make it 1 or more."
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class DataReport:
    """What became of the records of files.

    Attributes:
        num_records: Records that were read.
        num_duplicates: Of them, those that say what an earlier one says.
        num_judged_by: Of them, those left out because a file to judge by has their prompt.
        num_skipped: Samples that were too long and left out.
        num_cut: Samples that were too long and lost their end.
        num_trained: Samples, pairs and rated answers to train on.
        num_held_out: Those set aside.
        num_tokens: Tokens of all samples that are kept.
        num_counted: Of them, those that count.
        lengths: Lengths of samples in tokens: per cent of the samples -> most that they have.
    """

    num_records: int
    num_duplicates: int
    num_judged_by: int
    num_skipped: int
    num_cut: int
    num_trained: int
    num_held_out: int
    num_tokens: int
    num_counted: int
    lengths: dict[int, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One side of a data set.

    Attributes:
        samples: What is learnt as it stands.
        pairs: Two answers to one prompt, of which one is better.
        judged: Answers that were liked or were not.
    """

    samples: tuple[Sample, ...]
    pairs: tuple[Pair, ...]
    judged: tuple[Judged, ...]

    def __len__(self) -> int:
        """Count everything."""
        return len(self.samples) + len(self.pairs) + len(self.judged)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Samples of one model, and what became of the records.

    Attributes:
        trained: What is learnt.
        held_out: What is judged by.
        report: Counts.
    """

    trained: Part
    held_out: Part
    report: DataReport


def build(
    trained: Iterable[Placed],
    held_out: Iterable[Placed],
    maker: SampleMaker,
    config: DataConfig,
    *,
    num_records: int,
    num_duplicates: int = 0,
    num_judged_by: int = 0,
) -> Dataset:
    """Make the samples of records that are split already.

    Raises:
        InvalidDatasetError: A record cannot be a sample of the model, or there are none or
            too many.
    """
    sides = _Builder(maker, config), _Builder(maker, config)
    for side, records in zip(sides, (trained, held_out), strict=True):
        for placed in records:
            side.add(placed, windows_to=sides[1] if side is sides[0] else None)
            if sides[0].num_samples + sides[1].num_samples > config.max_samples:
                raise placed.wrong(f"more than {config.max_samples} samples")
    parts = sides[0].part(), sides[1].part()
    kept = [sample for part in parts for sample in _samples(part)]
    lengths = sorted(sample.num_computed for sample in kept)
    report = DataReport(
        num_records=num_records,
        num_duplicates=num_duplicates,
        num_judged_by=num_judged_by,
        num_skipped=sides[0].num_skipped + sides[1].num_skipped,
        num_cut=sides[0].num_cut + sides[1].num_cut,
        num_trained=len(parts[0]),
        num_held_out=len(parts[1]),
        num_tokens=sum(lengths),
        num_counted=sum(sum(sample.counts[1:]) for sample in kept),
        lengths={p: lengths[(len(lengths) - 1) * p // 100] for p in _PERCENTILES if lengths},
    )
    return Dataset(trained=parts[0], held_out=parts[1], report=report)


def read_dataset(
    files: Sequence[Path],
    maker: SampleMaker,
    config: DataConfig,
    *,
    held_out: Sequence[Path] = (),
    augment: AugmentConfig | None = None,
    seed: int = 0,
) -> Dataset:
    """Read files, drop duplicates, set some prompts aside, and make the samples of a model.

    Args:
        files: In this order.
        maker: Of the model.
        config: How.
        held_out: Files whose prompts are set aside, in all files; none: a share of all prompts.
        augment: How many changed copies there are of what is trained on; None: none.
        seed: Decides how they are changed.

    Raises:
        InvalidDatasetError: As `read_records` and `build` do; or nothing is left to learn.
    """
    counted = Counter[str]()

    def counting() -> Iterator[Placed]:
        for placed in read_records([*held_out, *files], config.form):
            counted["records"] += 1
            yield placed

    records = list(without_duplicates(counting()))
    if held_out:
        config = replace(config, held_out_share=0)
        trained, judging = split_files(records, frozenset(held_out))
    else:
        trained, judging = split_records(records, config.held_out_share)
    dataset = build(
        trained if augment is None else _with_copies(trained, augment, seed),
        judging,
        maker,
        config,
        num_records=counted["records"],
        num_duplicates=counted["records"] - len(records),
        num_judged_by=len(records) - len(trained) - len(judging),
    )
    if not len(dataset.trained):
        skipped = dataset.report.num_skipped
        reason = f"; {skipped} were longer than {maker.max_tokens} tokens" if skipped else ""
        raise InvalidDatasetError(
            ", ".join(map(str, files)), f"it holds no samples to train on{reason}"
        )
    return dataset


def read_samples(file: Path, maker: SampleMaker, *, max_samples: int = MAX_SAMPLES) -> list[Sample]:
    """Read all samples of a file, in order; those that are too long are refused.

    Raises:
        InvalidDatasetError: As `read_records` and `build` do.
    """
    config = DataConfig(held_out_share=0, too_long="refuse", max_samples=max_samples)
    samples = build(read_records([file]), [], maker, config, num_records=0).trained.samples
    if not samples:
        raise InvalidDatasetError(file, "it holds no samples")
    return list(samples)


def _with_copies(records: Sequence[Placed], config: AugmentConfig, seed: int) -> Iterator[Placed]:
    copier = Copier(config, [content_of(placed.record) for placed in records], seed)
    for placed in records:
        yield placed
        if not isinstance(placed.record, Preference | Rated):
            for copy in copier.copies(placed.record):
                yield replace(placed, record=copy)


class _Builder:
    """Collects one side of a data set."""

    def __init__(self, maker: SampleMaker, config: DataConfig) -> None:
        self._maker = maker
        self._config = config
        self._samples: list[Sample] = []
        self._pairs: list[Pair] = []
        self._judged: list[Judged] = []
        self.num_skipped = 0
        self.num_cut = 0

    @property
    def num_samples(self) -> int:
        """Samples so far, both of a pair counted as one."""
        return len(self._samples) + len(self._pairs) + len(self._judged)

    def add(self, placed: Placed, *, windows_to: "_Builder | None") -> None:
        """Take in a record; windows of texts may belong to the other side.

        Raises:
            InvalidDatasetError: It can be no sample.
        """
        try:
            self._add(placed.record, windows_to)
        except InvalidInputError as error:
            raise placed.wrong(error) from error

    def part(self) -> Part:
        """Return what was collected."""
        return Part(
            samples=tuple(self._samples), pairs=tuple(self._pairs), judged=tuple(self._judged)
        )

    def _add(self, record: Record, windows_to: "_Builder | None") -> None:
        match record:
            case Preference():
                chosen, rejected = self._one(record.chosen), self._one(record.rejected)
                if chosen is not None and rejected is not None:
                    self._pairs.append(Pair(chosen=chosen, rejected=rejected))
            case Rated():
                sample = self._one(record.lesson)
                if sample is not None:
                    self._judged.append(Judged(sample=sample, liked=record.liked))
            case Text():
                for sample in self._maker.samples(record):
                    key = f"{sample.token_ids}"
                    is_aside = is_held_out(key, self._config.held_out_share)
                    side = windows_to if windows_to is not None and is_aside else self
                    side._samples.append(sample)
            case _:
                sample = self._one(record)
                if sample is not None:
                    self._samples.append(sample)

    def _one(self, lesson: Lesson) -> Sample | None:
        sample = self._maker.sample(lesson)
        fitted = self._maker.fitted(sample, self._config.too_long)
        self.num_skipped += fitted is None
        self.num_cut += fitted is not None and fitted is not sample
        return fitted


def _samples(part: Part) -> Iterator[Sample]:
    yield from part.samples
    for pair in part.pairs:
        yield from (pair.chosen, pair.rejected)
    yield from (judged.sample for judged in part.judged)
