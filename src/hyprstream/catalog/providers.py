"""Who asks for tokens, at which address, and where people put them."""

from collections.abc import Mapping

from hyprstream.catalog.credentials import Provider
from hyprstream.catalog.hub import environment

ALIASES = {"huggingface": "hf"}


def providers(
    environ: Mapping[str, str], custom: Mapping[str, Mapping[str, str]]
) -> dict[str, Provider]:
    """List who asks for tokens, by name: the scheme of the references.

    Args:
        environ: The user's environment.
        custom: Registries of the user's own, as `Catalog` takes them.
    """
    hub = Provider(
        name="hf",
        address=environment.endpoint(environ),
        variables=environment.TOKENS,
        files=environment.token_files(environ),
        page=f"{environment.endpoint(environ)}/settings/tokens",
    )
    own = {
        scheme: Provider(
            name=scheme,
            address=options["url"],
            variables=(options["token_env"],) if options.get("token_env") else (),
        )
        for scheme, options in custom.items()
        if options.get("url")
    }
    return {"hf": hub, **own}
