"""Adapters and the model that they are for: how one is made, and brought back to it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from hyprstream.errors import HyprstreamError, InvalidSettingsError, ModelNotFoundError
from hyprstream.lora.basis import BaseLayers
from hyprstream.lora.create import create
from hyprstream.lora.spec import LoraSpec
from hyprstream.lora.weights import LoraWeights, pack, unpack
from hyprstream.models.decoder import Decoder
from hyprstream.refs import ModelRef, VersionId
from hyprstream.runtime.adapter_records import Committed
from hyprstream.runtime.adapters import EXACT, Adapters
from hyprstream.runtime.model import Model
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.recorded_training import check_training
from hyprstream.runtime.settings import Settings
from hyprstream.store.manifest import Draft, SpecValue, check_base
from hyprstream.store.records import Note
from hyprstream.vdb import codecs

ALL_LAYERS = "all"
"""A target that stands for every linear layer but the output head."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What a fresh adapter is made from.

    Attributes:
        spec: What it shall look like; `all` among its targets means every layer but the head.
        seed: Decides everything that is random.
        codec: The code of the version, and of later ones.
        training: How it is to be trained, as fields of `TrainConfig`, but for the seed;
            what is not there is left to the defaults.
    """

    spec: LoraSpec
    seed: int = 0
    codec: str = EXACT
    training: Mapping[str, SpecValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what cannot be, before work is done.

        Raises:
            UnsupportedCodecError: There is no code of that name.
            InvalidSettingsError: A setting of training is out of range.
            InvalidAdapterError: There is no such setting, or it is of another type.
        """
        codecs.load(self.codec)
        check_training({**self.training, "seed": self.seed})


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedAdapter:
    """A version that was brought to a model.

    Attributes:
        version: Its id.
        weights: What it adds.
        warning: What to tell the user; empty if it was made for this very model, and that is
            as it is stored.
    """

    version: VersionId
    weights: LoraWeights
    warning: str


def create_adapter(
    adapters: Adapters,
    name: str,
    model: Model,
    recipe: Recipe,
    note: Note = Note(),  # noqa: B008 - frozen
) -> Committed:
    """Make an adapter that adds nothing yet, store it, and give it a name.

    Raises:
        AdapterExistsError: The name is taken.
        InvalidSettingsError: The model lacks a target, or the mask needs gradients.
        InvalidAdapterError: The rank of a tiny adapter is higher than a layer allows.
        UnsupportedError: The model is an encoder.
    """
    adapters.check_free(name)
    done = commit_fresh(adapters, model, recipe)
    adapters.create(name, done.version, note)
    return done


def commit_fresh(adapters: Adapters, model: Model, recipe: Recipe) -> Committed:
    """Store a version that adds nothing yet, which no name points at; errors as above."""
    spec = recipe.spec
    if spec.mask == "gradient":
        raise InvalidSettingsError(
            "mask is gradient, and a fresh adapter has seen no samples",
            hint="Choose a mask by seed or magnitude.",
        )
    decoder = model.decoder
    spec = replace(spec, targets=_targets(spec, decoder))
    weights = create(spec, decoder.linears, seed=recipe.seed, base=BaseLayers(decoder.weights))
    draft = Draft(
        base=model.fingerprint,
        kinds=(spec.kind,),
        spec={
            **spec.plain(),
            "seed": recipe.seed,
            "codec": recipe.codec,
            **recipe.training,
        },
        codec=recipe.codec,
    )
    return adapters.commit(pack(weights), draft, seed=recipe.seed)


def load_adapter(
    adapters: Adapters, ref: str, model: Model, *, force: bool = False
) -> LoadedAdapter:
    """Bring a stored version to a model.

    Args:
        adapters: Where it is.
        ref: Which one.
        model: The model that it is to be used with.
        force: Warn instead of refusing one that was made for another model; its layers have
            to fit all the same.

    Raises:
        IncompatibleAdapterError: It was made for another model; names both.
        InvalidAdapterError: The payload is no adapter.
        HyprstreamError: It is not there, or damaged; see `Adapters.tensors`.
    """
    version = adapters.resolve(ref)
    warning = check_base(adapters.manifest(version), model.fingerprint, force=force)
    if warning is None and model.quantization is not None:
        warning = (
            f"the model was rounded to {model.quantization} while it was loaded; what was "
            "measured of the adapter does not hold for that"
        )
    decoder = model.decoder
    weights = unpack(adapters.tensors(version), BaseLayers(decoder.weights))
    return LoadedAdapter(version=version, weights=weights, warning=warning or "")


def base_model_ref(adapters: Adapters, ref: str, settings: Settings) -> str:
    """Return what a version's model was called, if a model of that name is on this machine.

    A manifest may come from a stranger: what it names is looked for and never fetched, and
    `load_adapter` finds out whether it is the model.

    Raises:
        ModelNotFoundError: It is not here.
    """
    name = adapters.manifest(adapters.resolve(ref)).base.name
    try:
        open_catalog(settings).find(ModelRef.parse(name))
    except HyprstreamError as error:
        raise ModelNotFoundError(
            f"adapter {ref!r} was made for {name}, which is not on this machine",
            hint="Name the model that it was made for, or fetch it first.",
        ) from error
    return name


def _targets(spec: LoraSpec, decoder: Decoder) -> tuple[str, ...]:
    if ALL_LAYERS not in spec.targets:
        return spec.targets
    every = (path.rpartition(".")[2] for path in decoder.linears if path != "lm_head")
    return tuple(dict.fromkeys(every))
