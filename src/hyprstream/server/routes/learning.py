"""Learning: what users say of answers, which adapters learn, and how that stands."""

from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from hyprstream.errors import InvalidRequestError
from hyprstream.refs import AdapterName, RequestId, adapter_name
from hyprstream.runtime import LearningStatus, learning_status
from hyprstream.runtime.live_learning import LiveLearning
from hyprstream.runtime.recorder import Opinion
from hyprstream.runtime.text_service import answer_id
from hyprstream.server.access import Route
from hyprstream.server.errors import ApiError
from hyprstream.server.schemas.adapters import Feedback, StartLearning
from hyprstream.server.state import grant_of, state_of

_GOOD_SCORE = 0.5
_MAX_DECISIONS = 100  # the latest ones


async def feedback(request: Request, body: Feedback) -> Response:
    """Say what one thinks of an answer."""
    said = [name for name in ("thumbs", "score", "correction") if getattr(body, name) is not None]
    if len(said) != 1:
        raise InvalidRequestError(
            "there is not one of thumbs, score and correction", hint="Send one of the three."
        )
    learning = learning_of(request)
    answer = answer_id(RequestId(body.id), body.index)
    opinion: Opinion = "correction"
    if body.correction is None:
        is_good = body.thumbs == "up" or (body.score is not None and body.score >= _GOOD_SCORE)
        opinion = "good" if is_good else "bad"
    may_use = grant_of(request).may_use
    recorded = await learning.feedback(answer, opinion, body.correction, may_use=may_use)
    if recorded == "unknown":
        raise ApiError(
            404, "there is no such answer, or none that is remembered", code="answer_not_found",
            param="id",
        )  # fmt: skip
    return JSONResponse({"id": body.id, "index": body.index, "recorded": recorded})


async def start(request: Request, lora: str, body: StartLearning) -> Response:
    """Let an adapter learn from the traffic."""
    await learning_of(request).set_policy(_named(request, lora), body.policy)
    return await status(request, lora)


async def stop(request: Request, lora: str) -> Response:
    """Let an adapter learn no more; samples that wait stay, and so does the rest of its policy."""
    await learning_of(request).stop_learning(_named(request, lora))
    return await status(request, lora)


async def status(request: Request, lora: str) -> Response:
    """Tell how the learning of an adapter stands."""
    state = state_of(request)
    name = state.allowed(lora, grant_of(request)).name
    runtime = state.runtime
    [found] = await runtime.in_pool(
        lambda: learning_status(runtime.adapters, runtime.settings, name)
    )
    learns = runtime.learning is not None and runtime.learning.learns(name)
    return JSONResponse({**_record(found), "learns": learns})


def _named(request: Request, lora: str) -> AdapterName:
    name = adapter_name(lora)
    state_of(request).allowed(name, grant_of(request))
    return name


def learning_of(request: Request) -> LiveLearning:
    """Return the learning of this server.

    Raises:
        ApiError: There is none (409).
    """
    learning = state_of(request).runtime.learning
    if learning is None:
        raise ApiError(
            409, "this server does not learn: train.enabled is off, or another process learns",
            code="learning_is_off",
        )  # fmt: skip
    return learning


def _record(status: LearningStatus) -> dict[str, Any]:
    return {
        "name": status.name,
        "learn": status.policy.learn,
        "keep_days": status.policy.keep_days,
        "keep_samples": status.policy.keep_samples,
        "canary": status.policy.canary,
        "canary_out": status.canary_record,
        "budget": asdict(status.budget),
        "spent": asdict(status.spent),
        "samples": asdict(status.samples),
        "min_waiting": status.min_waiting,
        "min_held_out": status.min_held_out,
        "trusted": dict(status.trusted),
        "decisions": [
            {
                "at": decision.at,
                "action": decision.action,
                "parent": decision.parent,
                "version": decision.version,
                "reasons": list(decision.reasons),
                "numbers": dict(decision.numbers),
            }
            for decision in status.decisions[-_MAX_DECISIONS:]
        ],
    }


ROUTES = (
    Route(method="POST", path="/v1/feedback", endpoint=feedback, needs="feedback"),
    Route(method="POST", path="/v1/training/{lora:path}/start", endpoint=start, needs="admin"),
    Route(method="POST", path="/v1/training/{lora:path}/stop", endpoint=stop, needs="admin"),
    Route(method="GET", path="/v1/training/{lora:path}/status", endpoint=status, needs="inference"),
)
