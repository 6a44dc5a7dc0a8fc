"""What of a model an adapter changes, and what it leaves as it is."""

from dataclasses import dataclass

from hyprstream.errors import HyprstreamError
from hyprstream.refs import VersionId
from hyprstream.runtime.adapters import Adapters
from hyprstream.runtime.exchange import spec_of
from hyprstream.runtime.model import Model
from hyprstream.store.manifest import check_base


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterCoverage:
    """How a version and the layers of its model fit together.

    Attributes:
        version: Its id.
        num_layers: Linear layers of the model.
        changed: Those that it changes.
        silent: Those that it has something for, which adds nothing: a fresh adapter, or zeros.
        missing: Those that its own settings name, and that it has nothing for.
        untouched: All others.
    """

    version: VersionId
    num_layers: int
    changed: tuple[str, ...]
    silent: tuple[str, ...]
    missing: tuple[str, ...]
    untouched: tuple[str, ...]


def adapter_coverage(adapters: Adapters, ref: str, model: Model) -> AdapterCoverage:
    """Tell what of a model a version changes.

    Raises:
        NotFoundError: There is no such version.
        IncompatibleAdapterError: It was made for another model.
        CorruptError: It is damaged.
    """
    info = adapters.info(ref)
    check_base(info.manifest, model.fingerprint)
    layers = list(model.decoder.linears)
    norms = {module.path: module.norm for module in info.modules}
    try:
        named = set(spec_of(info.manifest.spec).targeted(layers))
    except HyprstreamError:  # settings of another program, which name nothing here
        named = set()
    return AdapterCoverage(
        version=info.version,
        num_layers=len(layers),
        changed=tuple(path for path in layers if norms.get(path)),
        silent=tuple(path for path in layers if norms.get(path) == 0),
        missing=tuple(path for path in layers if path in named and path not in norms),
        untouched=tuple(path for path in layers if path not in named and path not in norms),
    )
