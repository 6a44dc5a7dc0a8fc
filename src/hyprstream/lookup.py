"""The one-file extension mechanism: a module's file name is its key.

An architecture, a registry or a codec is one module in one package. Untrusted text
(a downloaded file's `model_type`, a reference's scheme) reaches `importlib` only after it
was found among the package's own file names.
"""

import importlib
import pkgutil
from collections.abc import Mapping
from types import ModuleType

from hyprstream.errors import UnsupportedError


def names(package: str) -> list[str]:
    """List the extension names of `package` without importing them.

    Example:
        >>> "llama" in names("hyprstream.models.arch")
        True
    """
    path = importlib.import_module(package).__path__
    return sorted(module.name for module in pkgutil.iter_modules(path))


def load(
    package: str,
    name: str,
    *,
    kind: str,
    aliases: Mapping[str, str] | None = None,
    error: type[UnsupportedError] = UnsupportedError,
) -> ModuleType:
    """Import the module of `package` that serves `name`.

    Args:
        package: Dotted name of the package that holds the extensions.
        name: Key asked for; may come from an untrusted file.
        kind: What an error message calls such an extension.
        aliases: Other keys served by a module: key -> module name.
        error: Leaf of `UnsupportedError` to raise.

    Raises:
        UnsupportedError: No module of that name exists; the hint lists those that do.
    """
    target = (aliases or {}).get(name, name)
    known = names(package)
    if target not in known:
        choices = ", ".join(sorted({*known, *(aliases or {})}))
        raise error(f"{name!r} is not a {kind} that is supported", hint=f"Supported: {choices}.")
    return importlib.import_module(f"{package}.{target}")
