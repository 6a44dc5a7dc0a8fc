"""The console: a page at `/` that speaks to the API as any client does.

Its files hold no data and are served to everybody, since a browser has no key to send before
there is a page that asks for one. What the page may reach is said by its policy: files and
routes of this server, no markup made of text, no frame around it.
"""

import hashlib
from collections.abc import Mapping
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from hyprstream.server.access import Route
from hyprstream.server.errors import ApiError

_KINDS = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
    )
)
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}
"""What every file of the page is sent with, besides the `nosniff` of all answers."""


async def page(request: Request) -> Response:
    """Give the page."""
    return _answer(request, "index.html")


async def part(request: Request, name: str) -> Response:
    """Give a file of the page."""
    return _answer(request, name)


def _answer(request: Request, name: str) -> Response:
    content = _content(name)
    headers = {**HEADERS, "ETag": f'"{hashlib.sha256(content).hexdigest()[:32]}"'}
    if request.headers.get("if-none-match") == headers["ETag"]:
        return Response(status_code=304, headers=headers)
    kind = _KINDS[name[name.rindex(".") :]]
    return Response(content, headers=headers, media_type=kind)


def _content(name: str) -> bytes:
    """Read a file of the page. What is asked for is compared with what there is, never opened."""
    for file in (files("hyprstream.server") / "console").iterdir():
        if file.name == name and file.is_file() and name.endswith(tuple(_KINDS)):
            return file.read_bytes()
    raise ApiError(404, "the console has no such file", code="not_found")


ROUTES = (
    Route(method="GET", path="/", endpoint=page, needs="open"),
    Route(method="GET", path="/console/{name}", endpoint=part, needs="open"),
)
