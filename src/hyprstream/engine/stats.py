"""What an engine is doing at one moment, in numbers. Plain data, no torch."""

from dataclasses import dataclass

from hyprstream.refs import VersionId


@dataclass(slots=True)
class Counts:
    """What has happened since the scheduler was made. They only grow."""

    preemptions: int = 0
    """Sequences that lost them before they were over."""
    begun_tokens: int = 0
    """Tokens with which sequences began, those that were preempted once more."""
    shared_tokens: int = 0
    """Tokens that were not computed, because they had been before."""
    drafts: int = 0
    """Tokens that were guessed."""
    right_drafts: int = 0
    """Guesses that turned out right."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """An engine between two steps.

    Attributes:
        num_waiting: Sequences that wait.
        num_running: Sequences that are computed.
        num_blocks: Blocks of KV memory.
        num_free_blocks: Those that no sequence holds.
        num_slots: Adapter versions that one step can use.
        resident: Versions that are in slots.
        waiting_for: Versions that sequences wait for, and that are in none.
        adapter_bytes: Host memory of installed versions.
        counts: What has happened so far.
    """

    num_waiting: int
    num_running: int
    num_blocks: int
    num_free_blocks: int
    num_slots: int
    resident: frozenset[VersionId]
    waiting_for: frozenset[VersionId]
    adapter_bytes: int
    counts: Counts
