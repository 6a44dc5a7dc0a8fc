"""A log of samples in memory, which can fail."""

from hyprstream.errors import StorageFullError
from hyprstream.train.buffer import NOBODY, Kept, Owner


class FakeLog:
    """Remembers what it was told, in the order of a disk."""

    def __init__(self):
        self.rows: dict[int, Kept] = {}
        self.owners: dict[int, Owner] = {}
        self.fates: dict[int, str] = {}
        self.is_full = False

    def append(self, adapter, sample, source, *, held_out, owner=NOBODY):
        if self.is_full:
            raise StorageFullError("the disk is full", hint="Free some space.")
        number = len(self.rows) + 1
        self.rows[number] = Kept(
            id=number, adapter=adapter, sample=sample, source=source, is_held_out=held_out
        )
        self.owners[number] = owner
        return number

    def end(self, ids, fate):
        self.fates.update(dict.fromkeys(ids, fate))

    def waiting(self):
        return [kept for number, kept in self.rows.items() if number not in self.fates]

    def used(self):
        return [kept for number, kept in self.rows.items() if self.fates.get(number) == "used"]
