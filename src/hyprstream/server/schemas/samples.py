"""Bodies about samples."""

from typing import Annotated, Any

from pydantic import Field

from hyprstream.server.schemas.sampling import Strict

MAX_RECORDS = 512
"""Most records of a body that is one JSON object; JSON lines may be more."""

Records = Annotated[list[dict[str, Any]], Field(max_length=MAX_RECORDS)]


class Evaluate(Strict):
    """What an adapter is to be measured on."""

    samples: Annotated[Records, Field(min_length=1)] | None = None
    """Records in the forms of `POST /v1/adapters/.../samples`; without them, what is held out."""
    max_samples: Annotated[int, Field(ge=1, le=MAX_RECORDS)] = 128
    """Most of those that are held out, the latest."""


class Train(Strict):
    """Samples that an adapter is to learn, with those that wait already."""

    samples: Records = Field(default_factory=list)
