"""Everything that users meet and developers add is documented."""

import ast
import re
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import typer

from hyprstream import errors, lookup
from hyprstream.cli import main as command_line
from hyprstream.engine.config import EngineConfig
from hyprstream.engine.request import SamplingParams
from hyprstream.lora import interchange
from hyprstream.lora.spec import LoraSpec
from hyprstream.models import arch
from hyprstream.models.checkpoint import BLOCK_TYPES
from hyprstream.runtime.learning_config import LearningConfig
from hyprstream.runtime.registries import RegistrySettings
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import ModelSettings, Settings
from hyprstream.runtime.sql_config import SqlConfig
from hyprstream.train.config import FinishConfig, TrainConfig
from tests.project.pages import DOCS
from tests.project.sources import SOURCE

_EXTENSION_FOLDERS = {"arch", "codecs", "formats", "kinds", "registries"}


def _page(name: str) -> str:
    return (DOCS / name).read_text("utf-8")


def _subclasses(error: type[Exception]) -> Iterator[type[Exception]]:
    for child in error.__subclasses__():
        yield child
        yield from _subclasses(child)


def test_every_error_is_documented_with_its_exit_code():
    page = _page("reference/errors.md")
    for error in _subclasses(errors.HyprstreamError):
        if error.__module__ == errors.__name__:
            row = next((line for line in page.splitlines() if f"`{error.__name__}`" in line), "")
            assert f"| {error.exit_code} |" in row  # type: ignore[attr-defined]  # of our family


def _commands(command: Any, path: str = "hyprstream") -> Iterator[tuple[str, Any]]:
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        if not child.hidden:
            yield from _commands(child, f"{path} {name}")


def test_every_command_and_option_is_documented():
    sections = re.split(r"^## ", _page("reference/cli.md"), flags=re.MULTILINE)
    documented = {section.partition("\n")[0]: section for section in sections}
    for path, command in _commands(typer.main.get_command(command_line.build())):
        assert path in documented
        for parameter in command.params:
            for option in [*parameter.opts, *parameter.secondary_opts]:
                assert not option.startswith("-") or option in documented[path]


def _keys(config: Any) -> Iterator[str]:
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            yield from (f"{field.name}.{key}" for key in _keys(value))
        else:
            yield field.name


def test_every_setting_is_documented():
    page = _page("reference/settings.md")
    keys = {*Settings.model_fields, *(f"model.{field.name}" for field in fields(ModelSettings))}
    keys |= {f"registries.NAME.{field.name}" for field in fields(RegistrySettings)}
    for section, config in (
        ("engine", EngineConfig()),
        ("server", ServerConfig()),
        ("sql", SqlConfig()),
        ("train", LearningConfig()),
    ):
        keys |= {f"{section}.{key}" for key in _keys(config)}
    for key in keys - {"engine", "model", "registries", "server", "sql", "train"}:
        assert f"| `{key}` | `HYPRSTREAM_{key.replace('.', '__').upper()}` |" in page


def test_every_sampling_parameter_is_documented():
    page = _page("reference/sampling.md")
    for field in fields(SamplingParams):
        assert f"| `{field.name}` |" in page


def test_every_field_and_kind_of_an_adapter_is_documented():
    page = _page("reference/adapters.md")
    for name in [field.name for field in fields(LoraSpec)]:
        assert re.search(rf"^\| .*`{name}`.* \|", page, flags=re.MULTILINE), name
    for kind in lookup.names("hyprstream.lora.kinds"):
        assert f"| `{kind}` |" in page


def test_every_format_of_adapters_and_of_fused_models_is_documented():
    page = _page("reference/adapter-formats.md")
    for name in [*lookup.names(interchange.FORMATS), *lookup.names(interchange.FUSED)]:
        assert f"| `{name}` |" in page


def test_every_architecture_registry_and_quantised_format_is_documented():
    page = _page("reference/formats.md")
    families = lookup.names("hyprstream.models.arch")
    schemes = [f"{name}://" for name in lookup.names("hyprstream.catalog.registries")]
    for name in [*families, *arch.ALIASES, *schemes, *BLOCK_TYPES]:
        assert f"`{name}`" in page


def test_every_setting_of_training_is_documented_with_its_default():
    training, _, finish = _page("reference/training.md").partition("\n## The finish\n")
    for config, page in ((TrainConfig(), training), (FinishConfig(), finish)):
        for field in fields(config):
            row = re.search(rf"^\| `{field.name}` \| (.*?) \|", page, flags=re.MULTILINE)
            assert row is not None, field.name
            default = getattr(config, field.name)
            assert row[1] == "none" or ast.literal_eval(row[1].strip("`")) == default, field.name


def test_every_code_of_adapters_is_documented():
    page = _page("design/codec.md")
    for name in lookup.names("hyprstream.vdb.codecs"):
        assert f"| `{name}` |" in page


def test_the_tree_in_the_documents_is_the_tree_of_the_source():
    """Extensions are not named one by one: a folder of them takes new files without a change."""
    tree = _page("design/layers.md").partition("src/hyprstream/\n")[2].partition("```")[0]
    packages = {file.parent for file in SOURCE.rglob("__init__.py")} - {SOURCE}
    packages.add(SOURCE / "server" / "console")  # files of a page
    assert {f"{package.name}/" for package in packages} == set(re.findall(r"\b\w+/", tree))
    files = {
        file.name for file in SOURCE.rglob("*.py") if file.parent.name not in _EXTENSION_FOLDERS
    }
    assert files - set(re.findall(r"\w+\.py\b", tree)) <= {"__init__.py"}
    assert set(re.findall(r"\w+\.py\b", tree)) <= files
