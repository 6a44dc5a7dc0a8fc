"""How registries of the Docker kind let strangers in: they name a place that hands out tokens.

A 401 carries `WWW-Authenticate: Bearer realm="https://...",service="...",scope="..."`; the realm
answers with JSON that holds a `token` (distribution.github.io/distribution/spec/auth/token).
"""

import re
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hyprstream.catalog.web import Web, led_to
from hyprstream.errors import RegistryAnswerError

_PARAMETER = re.compile(r'([a-z_]{1,20})="([^"\\]{0,500})"')
_MAX_BYTES = 1 << 16


class _Grant(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)
    # Printable ASCII: it becomes a header.
    token: Annotated[str | None, Field(pattern=r"^[\x21-\x7e]{1,16384}$")] = None
    access_token: Annotated[str | None, Field(pattern=r"^[\x21-\x7e]{1,16384}$")] = None


def token_for(web: Web, challenge: str, *, asker: str, what: str) -> str | None:
    """Get the token that a challenge wants, as a stranger; None if it is of another kind.

    Args:
        web: How to ask.
        challenge: The value of `WWW-Authenticate`.
        asker: The address that it came from; it may lead where a redirect might.
        what: What the token is for, for messages.

    Raises:
        RegistryAnswerError: The realm must not be asked, or its answer makes no sense.
        HyprstreamError: As `Web.get`.
    """
    kind, _, rest = challenge[:4096].partition(" ")
    parameters = dict(_PARAMETER.findall(rest))
    realm = parameters.get("realm", "")
    if kind.lower() != "bearer" or "://" not in realm:
        return None
    asked = {name: parameters[name] for name in ("service", "scope") if name in parameters}
    address = led_to(httpx.URL(asker), realm, what)
    answer = web.get(
        str(address.copy_merge_params(asked)),
        what=f"a token for {what}",
        max_bytes=_MAX_BYTES,
    )
    try:
        grant = _Grant.model_validate_json(answer.content)
    except ValidationError as error:
        raise RegistryAnswerError(f"{realm[:80]} did not answer with a token for {what}") from error
    return grant.token or grant.access_token
