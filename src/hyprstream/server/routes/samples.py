"""Samples over HTTP: sent, listed, measured on, learnt from now, and taken back."""

import json
import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyprstream.errors import InvalidRequestError
from hyprstream.runtime import AdapterCoverage, Owner, adapter_coverage, learning_status
from hyprstream.runtime.journal_view import KeptRow, view_samples
from hyprstream.runtime.kept_samples import MAX_USER_CHARS, TakenLine, read_lines
from hyprstream.runtime.live_learning import LiveLearning
from hyprstream.runtime.training_data import maker_of
from hyprstream.server.access import Route
from hyprstream.server.errors import ApiError, api_error
from hyprstream.server.routes.learning import learning_of
from hyprstream.server.schemas.samples import Evaluate, Train
from hyprstream.server.state import ServerState, grant_of, state_of, unless_gone

_LINE_TYPES = frozenset(
    {"application/x-ndjson", "application/jsonl", "application/x-jsonlines", "application/ndjson"}
)
_MAX_LINES = 10_000
_AT_A_TIME = 32  # lines: others who learn come in between
_MAX_LISTED = 1000

Line = tuple[int, bytes]


async def send(request: Request, lora: str, user: str = "") -> Response:
    """Keep samples that an adapter is to learn from: one record as JSON, or JSON lines.

    Those that were kept are on the disk when the answer comes.
    """
    lines = await _lines(request)
    return JSONResponse(await _keep(request, lora, lines, user))


async def train(request: Request, lora: str, body: Train) -> Response:
    """Keep samples, and let the adapter learn from them and from what waits already."""
    lines = [(n, json.dumps(record).encode()) for n, record in enumerate(body.samples, 1)]
    name = state_of(request).allowed(lora, grant_of(request)).name
    await learning_of(request).train(name)
    return JSONResponse(await _keep(request, lora, lines, ""))


async def list_samples(
    request: Request, lora: str, after: int = 0, limit: int = 100, *, text: bool = False
) -> Response:
    """List what is kept of an adapter, by numbers, and count it by what became of it."""
    state = state_of(request)
    runtime, name = state.runtime, state.allowed(lora, grant_of(request)).name
    if not 1 <= limit <= _MAX_LISTED or after < 0:
        raise InvalidRequestError(
            f"limit is {limit}, and after {after}",
            hint=f"Ask for 1 to {_MAX_LISTED} samples after a number.",
        )

    def find() -> tuple[dict[str, int], list[dict[str, Any]]]:
        [status] = learning_status(runtime.adapters, runtime.settings, name)
        rows = view_samples(runtime.settings.journal_file, name, after=after, most=limit)
        return asdict(status.samples), [_row_record(row, state, text=text) for row in rows]

    counts, data = await runtime.in_pool(find)
    more = data[-1]["id"] if len(data) == limit else None
    return JSONResponse({"object": "list", "counts": counts, "data": data, "next_after": more})


async def evaluate(request: Request, lora: str, body: Evaluate) -> Response:
    """Measure an adapter and its base model, beside what is served."""
    state = state_of(request)
    runtime, ref = state.runtime, str(state.allowed(lora, grant_of(request)))
    samples = None
    if body.samples is not None:
        lines = [(n, json.dumps(record).encode()) for n, record in enumerate(body.samples, 1)]
        maker = maker_of(runtime.model, runtime.model.context_length)
        read = await runtime.in_pool(lambda: read_lines(lines, maker, Owner()))
        for line in read:
            if line.error is not None:
                raise api_error(line.error, param=f"samples.{line.number - 1}")
        samples = [sample for line in read for sample in line.samples]
    work = runtime.evaluate(ref, samples, most=body.max_samples)
    found = await unless_gone(request, work)
    return JSONResponse(
        {
            "version": found.version,
            "adapter": asdict(found.adapter),
            "base": asdict(found.base),
            "num_better": found.num_better,
        }
    )


async def coverage(request: Request, lora: str) -> Response:
    """Tell which layers of the model an adapter changes."""
    state = state_of(request)
    runtime, ref = state.runtime, state.allowed(lora, grant_of(request))
    found: AdapterCoverage = await runtime.in_pool(
        lambda: adapter_coverage(runtime.adapters, str(ref), runtime.model)
    )
    return JSONResponse({"name": ref.name, **asdict(found)})


async def erase(request: Request, user: str = "", key: str = "") -> Response:
    """Delete the samples of a user, of a key, or of a user with a key, from every file."""
    if not user and not key:
        raise InvalidRequestError(
            "nobody is named", hint="Name whose samples go: ?user=..., ?key=..., or both."
        )
    grant = grant_of(request)
    erased = await learning_of(request).erase(Owner(user=user, key=key), may_use=grant.may_use)
    return JSONResponse(erased.record())


async def _keep(request: Request, lora: str, lines: Sequence[Line], user: str) -> dict[str, Any]:
    state, grant, learning = state_of(request), grant_of(request), learning_of(request)
    runtime = state.runtime
    name = await learning.check(state.allowed(lora, grant).name)
    if len(user) > MAX_USER_CHARS:
        raise InvalidRequestError("the user's name is too long", hint="Shorten it.")
    owner = Owner(user=user, key=grant.id)
    buffer = runtime.settings.train.buffer
    maker = maker_of(runtime.model, min(runtime.model.context_length, buffer.max_sample_tokens) - 1)
    source = f"sent-{int(time.time())}-{secrets.token_hex(4)}"
    taken: list[TakenLine] = []
    for start in range(0, len(lines), _AT_A_TIME):
        part = lines[start : start + _AT_A_TIME]
        read = await runtime.in_pool(lambda part=part: read_lines(part, maker, owner))  # type: ignore[misc]  # now
        taken += await learning.keep(name, read, source)
    return await _told(learning, state, name, source, taken)


async def _told(
    learning: LiveLearning, state: ServerState, name: str, source: str, taken: list[TakenLine]
) -> dict[str, Any]:
    runtime = state.runtime
    [status] = await runtime.in_pool(
        lambda: learning_status(runtime.adapters, runtime.settings, name)
    )
    counts = Counter(became for line in taken for became in line.recorded)
    num_wrong = sum(line.error is not None for line in taken)
    return {
        "name": name,
        "source": source,
        "counts": {**counts, "error": num_wrong},
        "samples": asdict(status.samples),
        "learns": learning.learns(status.name),
        "results": [_line_record(line) for line in taken],
    }


def _line_record(line: TakenLine) -> dict[str, Any]:
    if line.error is not None:
        return {"line": line.number, **api_error(line.error).body}
    return {"line": line.number, "recorded": list(line.recorded)}


def _row_record(row: KeptRow, state: ServerState, *, text: bool) -> dict[str, Any]:
    sample = row.kept.sample
    record = {
        "id": row.id,
        "at": row.at,
        "state": row.state,
        "source": row.kept.source,
        "user": row.user,
        "key": row.key,
        "num_tokens": len(sample.token_ids),
    }
    if text:
        decode = state.runtime.model.tokenizer.decode
        record["text"] = decode(sample.token_ids, skip_special=False)
    return record


async def _lines(request: Request) -> list[Line]:
    """Read the records of a body, with the numbers of their lines."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return [(1, await request.body())]
    if kind not in _LINE_TYPES:
        raise ApiError(
            415, "send application/json, or application/x-ndjson with a record on each line",
            code="unsupported_media_type",
        )  # fmt: skip
    lines = (await request.body()).split(b"\n", _MAX_LINES)
    if len(lines) > _MAX_LINES:
        raise ApiError(
            413, f"there are more than {_MAX_LINES - 1} lines: send them in parts",
            code="body_too_large",
        )  # fmt: skip
    return [(number, line) for number, line in enumerate(lines, 1) if line.strip()]


ROUTES = (
    Route(method="POST", path="/v1/adapters/{lora:path}/samples", endpoint=send, needs="admin"),
    Route(
        method="GET", path="/v1/adapters/{lora:path}/samples", endpoint=list_samples, needs="admin"
    ),
    Route(
        method="POST", path="/v1/adapters/{lora:path}/evaluate", endpoint=evaluate, needs="admin"
    ),
    Route(
        method="GET",
        path="/v1/adapters/{lora:path}/coverage",
        endpoint=coverage,
        needs="inference",
    ),
    Route(method="POST", path="/v1/lora/{lora:path}/train", endpoint=train, needs="admin"),
    Route(method="DELETE", path="/v1/samples", endpoint=erase, needs="admin"),
)
