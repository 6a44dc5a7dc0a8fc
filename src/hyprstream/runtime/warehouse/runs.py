"""Two tables made of others: the runs of training, and what happened in order of time."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.training_place import TrainingPlace

Source = Callable[[], pa.Table]

_TEXT, _NUMBER, _REAL = pa.utf8(), pa.int64(), pa.float64()
_TIME = pa.timestamp("us", tz="UTC")
_RUNS = pa.schema(
    [
        *(("adapter", _TEXT), ("source", _TEXT), ("state", _TEXT), ("at", _TIME)),
        *(("parent", _TEXT), ("version", _TEXT), ("phase", _TEXT), ("step", _NUMBER)),
        *(("num_steps", _NUMBER), ("loss", _REAL), ("held_out_loss", _REAL)),
        *(("reasons", _TEXT), ("numbers", _TEXT)),
    ]
)
_EVENTS = pa.schema(
    [
        *(("at", _TIME), ("adapter", _TEXT), ("kind", _TEXT), ("action", _TEXT)),
        *(("version", _TEXT), ("detail", _TEXT)),
    ]
)
# Decisions that no training led to.
_NO_RUNS = frozenset({"rolled_back", "disabled", "promoted", "withdrawn"})


def training_runs(
    adapters: Adapters, training_folder: Path, versions: Source, decisions: Source
) -> Source:
    """Return how to list runs: on files, those that are over or at work; and beside serving.

    A run on files is `running`, `interrupted`, or over: `stored` with its version. One beside
    serving has the state that the journal says: `published`, `rejected`, `failed` ...
    """

    def read() -> pa.Table:
        rows = [_of_version(row) for row in versions().to_pylist() if _is_trained(row)]
        rows += [
            _of_decision(row) for row in decisions().to_pylist() if row["action"] not in _NO_RUNS
        ]
        rows.sort(key=lambda row: row["at"])
        for adapter in adapters.list():
            row = _at_work(TrainingPlace(training_folder, adapter.name), adapter.version)
            if row is not None:
                rows.append(row)
        return pa.Table.from_pylist(rows, schema=_RUNS)

    return read


def events(moves: Source, decisions: Source, requests: Source) -> Source:
    """Return how to list what happened: moves of names, decisions of learning, requests."""

    def read() -> pa.Table:
        moved, decided, asked = moves(), decisions(), requests()
        parts = [
            _events(moved, "move", "action", pa.nulls(len(moved), _TEXT)),
            _events(decided, "decision", "action", decided["reasons"]),
            _events(asked, "request", "outcome", asked["feedback"]),
        ]
        return pa.concat_tables(parts).sort_by("at")

    return read


def _events(table: pa.Table, kind: str, action: str, detail: Any) -> pa.Table:
    columns = [
        *(table["at"], table["adapter"], pa.array([kind] * len(table), _TEXT)),
        *(table[action], table["version"], detail),
    ]
    return pa.table(columns, schema=_EVENTS)


def _is_trained(row: dict[str, Any]) -> bool:
    return (row["made_by"] or "").endswith(", training")


def _of_version(row: dict[str, Any]) -> dict[str, Any]:
    metrics = json.loads(row["metrics"])
    num_steps = int(metrics.get("num_steps", 0))
    return {
        **{name: row[name] for name in ("adapter", "parent", "version")},
        "source": "data",
        "state": "stored",
        "at": row["created_at"],
        "step": num_steps,
        "num_steps": num_steps,
        "loss": metrics.get("train_loss"),
        "held_out_loss": metrics.get("held_out_loss"),
        "numbers": row["metrics"],
    }


def _of_decision(row: dict[str, Any]) -> dict[str, Any]:
    numbers = json.loads(row["numbers"])
    num_steps = int(numbers.get("steps", 0))
    same = ("adapter", "at", "parent", "version", "reasons", "numbers")
    return {
        **{name: row[name] for name in same},
        "source": "samples",
        "state": row["action"],
        "step": num_steps,
        "num_steps": num_steps,
    }


def _at_work(place: TrainingPlace, parent: str) -> dict[str, Any] | None:
    working = place.working()
    if working is not None:
        at = pa.scalar(round(working.began * 1e6), pa.int64()).cast(_TIME).as_py()
        same = {name: getattr(working, name) for name in ("source", "phase", "step", "num_steps")}
        losses = {"loss": working.loss, "held_out_loss": working.held_out_loss}
        return (
            {"adapter": place.name, "state": "running", "at": at, "parent": parent} | same | losses
        )
    if place.has_saved():
        return {"adapter": place.name, "source": "data", "state": "interrupted", "parent": parent}
    return None
