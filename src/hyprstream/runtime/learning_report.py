"""How the learning of adapters stands: from the disk, whoever is at work. No torch."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hyprstream.refs import AdapterName, adapter_name
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.canary import CanaryConfig, Trial
from hyprstream.runtime.journal_rows import Decision, SampleCounts
from hyprstream.runtime.journal_view import view_journal, view_trial
from hyprstream.runtime.learners import Budget, Spent, spent_on
from hyprstream.runtime.policy import LearningPolicy, Policies
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.training_place import TrainingPlace, Working


@dataclass(frozen=True, slots=True, kw_only=True)
class LearningStatus:
    """How the learning of one adapter stands.

    Attributes:
        name: The adapter.
        policy: What it learns from the traffic.
        trusted: Names of the trusted sets that people gave it, with their bytes.
        budget: What its learning may take on a day.
        spent: What it took today.
        samples: Of it, by what became of them.
        min_waiting: Fewest samples that make a version.
        min_held_out: Fewest that a version is judged by.
        decisions: All that the journal knows, the first one first.
        working: How far a training is that goes on now, in any process.
        is_training: There is one, even if it has said nothing yet.
        can_resume: A training on files was interrupted.
        is_journal_held: A process has the journal: a server, or a training on samples.
        trial: How its canary stands; None while none is out.
        canary: When a canary is decided about.
    """

    name: AdapterName
    policy: LearningPolicy
    trusted: Mapping[str, int]
    budget: Budget
    spent: Spent
    samples: SampleCounts
    min_waiting: int
    min_held_out: int
    decisions: tuple[Decision, ...]
    working: Working | None
    is_training: bool
    can_resume: bool
    is_journal_held: bool
    trial: Trial | None
    canary: CanaryConfig

    @property
    def waits_for_canary(self) -> bool:
        """Tell whether nothing is learnt until a canary has been tried for longer."""
        trial, config = self.trial, self.canary
        return trial is not None and not (trial.end(config) or trial.is_over(config, time.time()))

    @property
    def canary_record(self) -> dict[str, Any] | None:
        """How its canary stands, as plain data."""
        trial = self.trial
        if trial is None:
            return None
        canary = trial.canary
        return {
            "version": canary.version,
            "parent": canary.parent,
            "since": canary.since.isoformat(timespec="seconds"),
            **trial.numbers(self.canary, time.time()),
            "max_answers": self.canary.max_answers,
            "max_hours": self.canary.max_hours,
        }

    @property
    def has_enough(self) -> bool:
        """Tell whether enough samples are there to make a version and to judge it."""
        return (
            self.samples.waiting >= self.min_waiting and self.samples.held_out >= self.min_held_out
        )


def learning_status(
    adapters: Adapters, settings: Settings, name: str | None = None
) -> list[LearningStatus]:
    """Tell how the learning of an adapter stands, or of all; nothing is changed or waited for.

    Raises:
        AdapterNotFoundError: There is no such adapter.
        CorruptError: The journal, or a policy, is damaged.
        UnavailableError: The journal cannot be read.
    """
    if name is None:
        names = [adapter.name for adapter in adapters.list()]
    else:
        adapters.resolve(name)
        names = [adapter_name(name)]
    view = view_journal(settings.journal_file)
    today = spent_on(view.decisions, time.time())
    policies, config = Policies(adapters), settings.train
    found = []
    for known in names:
        place = TrainingPlace(settings.training_folder, known)
        policy, is_training = policies.of(known), place.is_held()
        born = adapters.history(known)[0].at.timestamp()
        out = adapters.canaries.of(known)
        found.append(
            LearningStatus(
                name=known,
                policy=policy,
                trusted=policies.trusted(known),
                budget=policy.budget(config.learner.budget),
                spent=today.get(known, Spent()),
                samples=view.samples.get(known, SampleCounts()),
                min_waiting=config.learner.min_waiting,
                min_held_out=config.learner.min_held_out,
                decisions=tuple(d for d in view.decisions if d.adapter == known and d.at >= born),
                working=place.working() if is_training else None,
                is_training=is_training,
                can_resume=not is_training and place.has_saved(),
                is_journal_held=view.is_held,
                trial=None if out is None else view_trial(settings.journal_file, known, out),
                canary=config.canary,
            )
        )
    return found
