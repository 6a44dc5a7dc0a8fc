"""What `deploy/` holds: every command, setting, port and path in it is one that there is.

The files are read, not run: there is no Docker and no cluster here.
"""

import re
import shlex
import shutil
import subprocess
import tomllib
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer
import yaml

from hyprstream.cli.main import build
from hyprstream.refs import ModelRef
from hyprstream.runtime.server_config import ServerConfig
from hyprstream.runtime.settings import Settings
from hyprstream.server.app import ROUTES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PORT = "8080"
UID = 10001


def dockerfile() -> list[tuple[str, str]]:
    """The instructions, comments left out and lines joined."""
    text = (DEPLOY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    pairs = [line.partition(" ") for line in joined.splitlines() if line]
    return [(word, rest) for word, _, rest in pairs]


def unit() -> list[tuple[str, str]]:
    lines = (DEPLOY / "hyprstream.service").read_text().splitlines()
    pairs = [line.partition("=") for line in lines if line and line[0] not in "#["]
    return [(key, value) for key, _, value in pairs]


def compose() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    service: dict[str, Any] = found["services"]["hyprstream"]
    return service


def kubernetes() -> dict[str, dict[str, Any]]:
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return {document["kind"]: document for document in documents}


def pod() -> dict[str, Any]:
    found: dict[str, Any] = kubernetes()["Deployment"]["spec"]["template"]["spec"]
    return found


def container() -> dict[str, Any]:
    found: dict[str, Any] = pod()["containers"][0]
    return found


def container_environment() -> dict[str, str]:
    return {entry["name"]: entry.get("value", "x" * 32) for entry in container()["env"]}


def docker_environment() -> dict[str, str]:
    [text] = [rest for word, rest in dockerfile() if word == "ENV"]
    pairs = (pair.partition("=") for pair in shlex.split(text))
    return {key: value for key, _, value in pairs}


def unit_environment() -> dict[str, str]:
    pairs = (value.partition("=") for key, value in unit() if key == "Environment")
    return {key: value for key, _, value in pairs}


ENVIRONMENTS = {
    "Dockerfile": docker_environment,
    "compose.yaml": lambda: compose()["environment"],
    "kubernetes.yaml": container_environment,
    "hyprstream.service": unit_environment,
}


@pytest.mark.parametrize("file", ENVIRONMENTS)
def test_every_variable_is_a_setting_and_can_be_read(file, monkeypatch, tmp_path):
    found = {key: value for key, value in ENVIRONMENTS[file]().items() if "HYPRSTREAM" in key}
    assert found
    for name in found:
        parts = name.removeprefix("HYPRSTREAM_").lower().split("__")
        assert name.startswith("HYPRSTREAM_")
        if parts == ["config"]:
            continue
        kind: Any = Settings
        for part in parts:
            hints = get_type_hints(kind)
            assert part in hints, f"{name}: there is no setting {part}"
            kind = hints[part]
        assert not is_dataclass(kind), f"{name} is a section"
    for name, value in found.items():
        monkeypatch.setenv(name, re.sub(r"\$\{.*\}", "x" * 32, value))
    monkeypatch.setenv("HYPRSTREAM_CONFIG", str(tmp_path / "none.toml"))
    assert Settings().server.port == int(PORT)


def commands() -> dict[str, list[str]]:
    """What is run, without the program's own name."""
    [start] = [value for key, value in unit() if key == "ExecStart"]
    [plain] = [yaml.safe_load(rest) for word, rest in dockerfile() if word == "CMD"]
    return {
        "Dockerfile": plain,
        "compose.yaml": compose()["command"],
        "kubernetes.yaml": container()["args"],
        "hyprstream.service": shlex.split(start)[1:],
    }


@pytest.mark.parametrize("file", commands())
def test_every_command_is_one_that_there_is(file):
    words = commands()[file]
    command: Any = typer.main.get_command(build())
    context = command.make_context("hyprstream", list(words), resilient_parsing=True)
    name, found, rest = command.resolve_command(context, list(words))
    assert name == "server"
    parsed = found.make_context(name, list(rest))
    model = parsed.params.get("model")
    assert model is None or ModelRef.parse(model).name


def test_the_program_is_the_one_that_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [entry] = [yaml.safe_load(rest) for word, rest in dockerfile() if word == "ENTRYPOINT"]
    assert entry == ["hyprstream"]
    assert set(entry) <= project["scripts"].keys()
    [start] = [value for key, value in unit() if key == "ExecStart"]
    assert Path(shlex.split(start)[0]).name in project["scripts"]
    text = " ".join(rest for word, rest in dockerfile() if word == "RUN")
    extras = re.findall(r"'\.\[(.*?)\]'", text)
    assert extras
    assert set(extras[0].split(",")) <= project["optional-dependencies"].keys()
    copied = [rest.split()[:-1] for word, rest in dockerfile()
              if word == "COPY" and "--from" not in rest]  # fmt: skip
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    for name in (name for names in copied for name in names):
        assert (ROOT / name).exists(), name
        assert f"!{name}" in ignored, name


def open_paths() -> set[str]:
    return {route.path for route in ROUTES if route.needs == "open" and route.method == "GET"}


def test_probes_ask_what_is_open_at_the_port_that_is_listened_at():
    [check] = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    words = yaml.safe_load(check[check.index("CMD") + 3 :])
    compile(words[-1], "HEALTHCHECK", "exec")
    [(port, path)] = re.findall(r"http://127\.0\.0\.1:(\d+)(/\w+)", words[-1])
    assert (port, path in open_paths()) == (PORT, True)
    assert docker_environment()["HYPRSTREAM_SERVER__PORT"] == PORT
    assert [rest for word, rest in dockerfile() if word == "EXPOSE"] == [PORT]
    assert compose()["ports"] == [f"127.0.0.1:{PORT}:{PORT}"]
    [named] = container()["ports"]
    assert str(named["containerPort"]) == PORT
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container()[kind]["httpGet"]
        assert asked["path"] in open_paths()
        assert asked["port"] == named["name"]
    service = kubernetes()["Service"]["spec"]
    assert service["ports"][0]["targetPort"] == named["name"]
    labels = kubernetes()["Deployment"]["spec"]["template"]["metadata"]["labels"]
    assert service["selector"].items() <= labels.items()


def test_nobody_is_killed_before_answers_are_finished():
    usual = ServerConfig().drain_s
    compose_s = float(compose()["environment"]["HYPRSTREAM_SERVER__DRAIN_S"])
    assert int(compose()["stop_grace_period"].removesuffix("s")) > compose_s
    [wait] = [int(word) for word in container()["lifecycle"]["preStop"]["exec"]["command"][1:]]
    drain_s = float(container_environment()["HYPRSTREAM_SERVER__DRAIN_S"])
    assert pod()["terminationGracePeriodSeconds"] > wait + drain_s
    values = dict(unit())
    assert int(values["TimeoutStopSec"]) > usual
    assert values["KillSignal"] == "SIGTERM"
    assert values["ExecReload"].split()[1] == "-HUP"
    assert ("STOPSIGNAL", "SIGTERM") in dockerfile()


def test_nobody_runs_as_root_and_the_home_is_a_volume():
    [user] = [rest for word, rest in dockerfile() if word == "USER"]
    assert user == f"{UID}:{UID}"
    context = pod()["securityContext"]
    assert context["runAsNonRoot"]
    assert {context[key] for key in ("runAsUser", "runAsGroup", "fsGroup")} == {UID}
    home = docker_environment()["HYPRSTREAM_HOME"]
    assert ("VOLUME", home) in dockerfile()
    assert compose()["volumes"] == [f"home:{home}"]
    mounts = {mount["mountPath"]: mount["name"] for mount in container()["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod()["volumes"]}
    claim = volumes[mounts[home]]["persistentVolumeClaim"]["claimName"]
    assert claim == kubernetes()["PersistentVolumeClaim"]["metadata"]["name"]
    assert compose()["read_only"]
    assert container()["securityContext"]["readOnlyRootFilesystem"]
    assert kubernetes()["Deployment"]["spec"]["replicas"] == 1  # one process learns in a home
    assert kubernetes()["Deployment"]["spec"]["strategy"]["type"] == "Recreate"


SYSTEMD = shutil.which("systemd-analyze")


@pytest.mark.skipif(SYSTEMD is None, reason="there is no systemd-analyze")
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path):
    text = (DEPLOY / "hyprstream.service").read_text()
    file = tmp_path / "hyprstream.service"
    file.write_text(re.sub(r"^ExecStart=.*$", "ExecStart=/bin/true", text, flags=re.MULTILINE))
    assert SYSTEMD is not None
    done = subprocess.run(
        [SYSTEMD, "verify", str(file)], capture_output=True, text=True, check=False
    )
    assert str(file) not in done.stderr, done.stderr
    assert done.returncode == 0, done.stderr
