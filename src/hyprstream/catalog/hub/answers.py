"""What the Hub says, checked on the way in: it comes from a server."""

from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from hyprstream.errors import RegistryAnswerError

_MAX_FILES = 100_000
_Name = Annotated[str, Field(min_length=1, max_length=1024)]


class HubFile(BaseModel):
    """A file of a model: a large one is known by its SHA-256, a small one by its hash in git."""

    model_config = ConfigDict(strict=True, frozen=True)
    name: _Name
    size_bytes: Annotated[int, Field(ge=0, lt=1 << 63)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None
    git_sha1: Annotated[str, Field(pattern="^[0-9a-f]{40}$")] | None


class HubModel(BaseModel):
    """One revision of a model."""

    model_config = ConfigDict(strict=True, frozen=True)
    commit: Annotated[str, Field(pattern="^[0-9a-f]{40}$")]
    license: str | list[str] | None
    files: Annotated[list[HubFile], Field(max_length=_MAX_FILES)]

    @property
    def terms(self) -> str:
        """The names of its licences."""
        names = [self.license] if isinstance(self.license, str) else self.license or []
        return ", ".join(names)[:200]


class Found(BaseModel):
    """A model as the Hub's search lists it."""

    model_config = ConfigDict(strict=True, frozen=True)
    name: _Name
    downloads: int | None
    gated: bool
    task: str | None
    tags: list[str]
    updated: Annotated[AwareDatetime, Field(strict=False)] | None


def read_model(answer: object, what: str) -> HubModel:
    """Check what the Hub says about a model.

    Raises:
        RegistryAnswerError: It makes no sense.
    """
    try:
        return HubModel.model_validate(answer)
    except ValidationError as error:
        raise _senseless(error, what) from error


def read_found(answer: object, what: str) -> list[Found]:
    """Check a list of models.

    Raises:
        RegistryAnswerError: It makes no sense.
    """
    try:
        return TypeAdapter(list[Found]).validate_python(answer)
    except ValidationError as error:
        raise _senseless(error, what) from error


def _senseless(error: ValidationError, what: str) -> RegistryAnswerError:
    problem = error.errors()[0]
    where = ".".join(map(str, problem["loc"])) or "the whole"
    return RegistryAnswerError(
        f"the Hub's answer about {what} makes no sense: {where}: {problem['msg']}",
        hint="Look whether HF_ENDPOINT leads to a Hugging Face Hub.",
    )
