"""Actions about adapters, and samples for them: JSON in, JSON out."""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, TypeVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.errors import InvalidRequestError, UnsupportedError
from hyprstream.runtime import AdapterInfo, LearningPolicy, LearningStatus, LoraSpec, Recipe
from hyprstream.runtime.warehouse.desk import MAX_ROWS, Desk, Taken
from hyprstream.runtime.warehouse.warehouse import Caller

SAMPLES = "samples"
"""The schema in which each adapter is as a table that takes samples."""

ADAPTER_ACTIONS = (
    ("CreateAdapter", 'Makes an adapter: {"name", "rank", "alpha", "target_modules", ...}.'),
    ("TrainAdapter", 'Lets an adapter learn: {"name", "learn", "steps_per_day", ...}.'),
    ("StopTraining", 'Lets an adapter learn no more: {"name"}.'),
    ("PromoteAdapter", 'Lets a name point at another version: {"ref": "NAME@VERSION", "why"}.'),
    ("RollbackAdapter", 'Undoes the last promotion: {"name", "why"}.'),
    ("CompactStore", "Removes the versions that nothing leads to: {}."),
    ("AdapterStats", 'Tells what an adapter does to each layer: {"ref"}.'),
)
_MOST_BYTES = 64 << 20

_Text = Annotated[str, Field(min_length=1, max_length=400)]
_Why = Annotated[str, Field(max_length=2000)]
Body = TypeVar("Body", bound=BaseModel)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, hide_input_in_errors=True)


class _Named(_Strict):
    name: _Text
    why: _Why = ""


class _Ref(_Strict):
    ref: _Text
    why: _Why = ""


class _Nothing(_Strict):
    pass


class _Create(_Named):
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    alpha: Annotated[float, Field(gt=0, le=1e6)] | None = None
    target_modules: Annotated[tuple[str, ...], Field(min_length=1, max_length=512)] = (
        "q_proj",
        "v_proj",
    )
    kind: Literal["low_rank", "sparse", "tiny"] = "low_rank"
    sparsity: Annotated[float, Field(ge=0, le=0.999)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0

    @property
    def recipe(self) -> Recipe:
        alpha = 2.0 * self.rank if self.alpha is None else self.alpha
        spec = LoraSpec(
            rank=self.rank,
            alpha=alpha,
            targets=self.target_modules,
            kind=self.kind,
            sparsity=self.sparsity,
        )
        return Recipe(spec=spec, seed=self.seed)


class _Train(_Strict):
    name: _Text
    learn: Literal["feedback", "all"] | None = None
    steps_per_day: Annotated[int, Field(ge=0)] | None = None
    seconds_per_day: Annotated[float, Field(ge=0)] | None = None
    tokens_per_day: Annotated[int, Field(ge=0)] | None = None
    canary: Annotated[float, Field(ge=0, lt=1)] | None = None

    @property
    def policy(self) -> LearningPolicy | None:
        given = self.model_dump(exclude={"name"}, exclude_none=True)
        return LearningPolicy(**{"learn": "feedback", **given}) if given else None


class AdapterDesk:
    """Runs those actions.

    Args:
        desk: Does them; None where there is no runtime.
    """

    def __init__(self, desk: Desk | None) -> None:
        self._given = desk
        self._known: Mapping[str, Callable[[Caller, bytes], Any]] = {
            "CreateAdapter": self._create,
            "TrainAdapter": self._train,
            "StopTraining": lambda c, b: _status(self._desk.stop(c, _read(_Named, b).name)),
            "PromoteAdapter": self._promote,
            "RollbackAdapter": self._roll_back,
            "CompactStore": self._compact,
            "AdapterStats": lambda c, b: _stats(self._desk.info(c, _read(_Ref, b).ref)),
        }

    def knows(self, kind: str) -> bool:
        """Tell whether an action is one of these."""
        return kind in self._known

    def run(self, caller: Caller, kind: str, body: bytes) -> list[bytes]:
        """Run an action; return the bodies of its answers."""
        return [json.dumps(self._known[kind](caller, body)).encode()]

    def put(self, caller: Caller, adapter: str, batches: Iterable[pa.RecordBatch]) -> Taken:
        """Take samples, one record in each row; none is kept if one of them is none."""
        rows: list[dict[str, object]] = []
        num_bytes = 0
        for batch in batches:
            num_bytes += batch.nbytes
            if len(rows) + batch.num_rows > MAX_ROWS or num_bytes > _MOST_BYTES:
                raise InvalidRequestError(
                    f"more than {MAX_ROWS} samples, or {_MOST_BYTES} bytes of them, at once",
                    hint="Send them in parts.",
                )
            rows += batch.to_pylist()
        return self._desk.send(caller, adapter, rows)

    @property
    def _desk(self) -> Desk:
        if self._given is None:
            raise UnsupportedError("this service has no model whose adapters could learn")
        return self._given

    def _create(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _read(_Create, body)
        return _stats(self._desk.create(caller, asked.name, asked.recipe, asked.why))

    def _train(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _read(_Train, body)
        return _status(self._desk.train(caller, asked.name, asked.policy))

    def _promote(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _read(_Ref, body)
        return {"ref": asked.ref, "version": self._desk.promote(caller, asked.ref, asked.why)}

    def _roll_back(self, caller: Caller, body: bytes) -> dict[str, Any]:
        asked = _read(_Named, body)
        return {
            "name": asked.name,
            "version": self._desk.roll_back(caller, asked.name, asked.why),
        }

    def _compact(self, caller: Caller, body: bytes) -> dict[str, Any]:
        _read(_Nothing, body)
        found = self._desk.compact(caller)
        return {"versions": len(found.versions), "freed_bytes": found.freed_bytes}


def _read(kind: type[Body], body: bytes) -> Body:
    try:
        return kind.model_validate_json(body or b"{}")
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"the body of the action: {field + ': ' if field else ''}{first['msg']}",
            hint="ListActions tells what it holds.",
        ) from None


def _status(status: LearningStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "learn": status.policy.learn,
        "samples": asdict(status.samples),
        "spent": asdict(status.spent),
    }


def _stats(info: AdapterInfo) -> dict[str, Any]:
    return {
        "name": info.ref.name,
        "version": info.version,
        "parent": info.manifest.parent,
        "size_bytes": info.manifest.payload.size_bytes,
        "metrics": dict(info.manifest.metrics),
        "modules": [
            {
                "path": module.path,
                "kind": module.kind,
                "rank": module.rank,
                "num_elements": module.num_elements,
                "num_active": module.num_active,
                "norm": module.norm,
            }
            for module in info.modules
        ],
    }
