"""Errors as HTTP answers. What they say names no file and quotes no prompt.

OpenAI's form: {"error": {"message": ..., "type": ..., "param": ..., "code": ...}}
Anthropic's: {"type": "error", "error": {"type": ..., "message": ...}}
"""

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from hyprstream.errors import (
    AdapterNotFoundError,
    CorruptError,
    HyprstreamError,
    InvalidSettingsError,
    ModelNotFoundError,
    QueueFullError,
    RateLimitedError,
    UnavailableError,
    VersionNotFoundError,
)

log = logging.getLogger(__name__)

ErrorForm = Literal["openai", "anthropic"]

_TYPES: Mapping[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    409: "conflict_error",
    422: "unsupported_error",
    429: "rate_limit_error",
    503: "unavailable_error",
}
_ANTHROPIC_TYPES: Mapping[int, str] = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}
_RETRY_S = "1"
REFUSED = "refused"
"""Kind of a validation error: the field is known, and what it asks for is not done."""
# Folders and files: of them a message says no more than that there is one.
_PATH = re.compile(r"(?<![\w:/])(?:~|/(?=[^\s/]))[^\s'\",;)]*/[^\s'\",;)]*")


class ApiError(HTTPException):
    """An answer that is an error. A `HTTPException`, so that the framework lets it pass.

    Args:
        status: Of HTTP.
        message: What happened and what to do, for people.
        code: The same for programs.
        param: The field of the request that it is about.
        headers: Further ones.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, headers)
        self.code = code
        self.param = param

    @property
    def body(self) -> dict[str, Any]:
        """The error as JSON."""
        return error_body(self.status_code, self.detail, code=self.code, param=self.param)

    @property
    def anthropic_body(self) -> dict[str, Any]:
        """The error as JSON, in Anthropic's form."""
        usual = "api_error" if self.status_code >= 500 else "invalid_request_error"
        kind = _ANTHROPIC_TYPES.get(self.status_code, usual)
        return {"type": "error", "error": {"type": kind, "message": self.detail}}

    def response(self, form: ErrorForm = "openai") -> JSONResponse:
        """Write the error as an answer."""
        body = self.anthropic_body if form == "anthropic" else self.body
        return JSONResponse(body, self.status_code, headers=self.headers)


def error_body(status: int, message: str, *, code: str, param: str | None = None) -> dict[str, Any]:
    """Write an error in OpenAI's form."""
    kind = _TYPES.get(status) or ("server_error" if status >= 500 else _TYPES[400])
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def api_error(error: HyprstreamError, *, param: str | None = None) -> ApiError:
    """Turn an error of ours into an answer.

    What concerns the inside of the server is told by its kind alone; the log has the rest.
    """
    status, code = error.http_status, error.code
    headers = {}
    if isinstance(error, (QueueFullError, RateLimitedError)):
        status = 429
    if status in (429, 503):
        headers["Retry-After"] = _RETRY_S
    if isinstance(error, (AdapterNotFoundError, ModelNotFoundError, VersionNotFoundError)):
        param, code = "model", "model_not_found"
    is_inside = isinstance(error, CorruptError) or (
        isinstance(error, (UnavailableError, InvalidSettingsError)) and _PATH.search(str(error))
    )
    if is_inside:
        status = 500 if isinstance(error, InvalidSettingsError) else status
        log.error("%s: %s", code, error)
        summary = (inspect.getdoc(type(error)) or "").splitlines()[0].removeprefix("Report ")
        return ApiError(status, f"the server met {summary}", code=code, headers=headers)
    return ApiError(status, _shown(error), code=code, param=param, headers=headers)


def damaged_upload(error: CorruptError) -> ApiError:
    """Say that what was sent is damaged: the caller's fault, not that of the disk."""
    return ApiError(400, _shown(error), code=error.code)


def without_paths(text: str) -> str:
    """Leave out which folders and files a text names."""
    return _PATH.sub("[path]", text)


def settings_error(error: HyprstreamError) -> ApiError:
    """Say to an admin why new settings cannot be used."""
    return ApiError(400, f"the settings in force stay: {_shown(error)}", code=error.code)


def _shown(error: HyprstreamError) -> str:
    return without_paths(f"{error}. {error.hint}" if error.hint else str(error))


def validation_error(errors: Sequence[Mapping[str, Any]]) -> ApiError:
    """Say what is wrong with the first field that is, without quoting it.

    What was refused comes first: of a value that may be several things, it is what was meant.
    """
    first = next((error for error in errors if error["type"] == REFUSED), errors[0])
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    if first["type"] == "extra_forbidden":
        shown = f"{place[-1][:80]!a}"
        return ApiError(
            400,
            f"the field {shown} is not supported: docs/reference/http.md lists what is applied "
            "and what is ignored",
            code="unsupported_parameter",
            param=param,
        )
    if first["type"] == REFUSED:
        message = f"{param}: {first['msg']}"
        return ApiError(400, message, code="unsupported_parameter", param=param)
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is no JSON", code="invalid_json")
    where = f"{param}: " if param else "the body: "
    return ApiError(400, f"{where}{first['msg']}", code="invalid_request", param=param)


def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer with an error of ours or of the framework."""
    return _as_api_error(error).response(getattr(request.state, "error_form", "openai"))


def _as_api_error(error: Exception) -> ApiError:
    if isinstance(error, HyprstreamError):
        return api_error(error)
    if isinstance(error, RequestValidationError):
        return validation_error(error.errors())
    if isinstance(error, ApiError):
        return error
    assert isinstance(error, HTTPException), "the framework raises no others"
    codes = {404: "not_found", 405: "method_not_allowed", 415: "unsupported_media_type"}
    code = codes.get(error.status_code, "invalid_request")
    headers = dict(error.headers or {})
    return ApiError(error.status_code, str(error.detail), code=code, headers=headers)


def internal_error() -> ApiError:
    """Say that something went wrong here, and no more."""
    return ApiError(
        500, "the server has met an error of its own; its log says more", code="internal_error"
    )
