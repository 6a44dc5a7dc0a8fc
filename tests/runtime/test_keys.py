"""Keys: made once, kept as hashes, in a file that is for its owner alone."""

import stat
from pathlib import Path

import pytest

from hyprstream.errors import (
    InvalidReferenceError,
    InvalidRequestError,
    InvalidSettingsError,
    NotFoundError,
)
from hyprstream.refs import AdapterName
from hyprstream.runtime.keys import SCOPES, Grant, KeyFile, Verifier, digest


@pytest.fixture
def file(tmp_path) -> KeyFile:
    return KeyFile(tmp_path / "keys")


def test_a_key_allows_what_it_was_made_for(file):
    key, stored = file.create("app", ["feedback", "inference"], ["poet", "team/clerk"])
    grant = Verifier(file).grant(key)
    assert grant == Grant(
        id=stored.id,
        scopes=frozenset({"inference", "feedback"}),
        adapters=frozenset({"poet", "team/clerk"}),  # type: ignore[arg-type]  # names
    )
    names = map(AdapterName, ("poet", "team/clerk", "other"))
    assert [grant.may_use(name) for name in names] == [True, True, False]
    everything, _ = file.create("all", SCOPES)
    grant = Verifier(file).grant(everything)
    assert grant is not None
    assert grant.may_use(AdapterName("other"))


def test_keys_are_long_different_and_kept_as_hashes_alone(file):
    made = {file.create("x", ["inference"])[0] for _ in range(20)}
    assert len(made) == 20
    assert {len(key) for key in made} == {len("hs-") + 43}
    content = file.path.read_text()
    assert not any(key in content or key.removeprefix("hs-") in content for key in made)
    assert all(digest(key) in content for key in made)


def test_the_file_is_for_its_owner(file):
    file.create("x", ["inference"])
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.parent.stat().st_mode) == 0o700
    file.path.chmod(0o640)
    with pytest.raises(InvalidSettingsError, match="open to others"):
        file.read()
    file.path.chmod(0o600)
    other = file.path.with_name("other")
    file.path.rename(other)
    file.path.symlink_to(other)
    with pytest.raises(InvalidSettingsError):
        file.read()


@pytest.mark.parametrize(
    "content", ["", "{}", '{"format": 2, "keys": []}', "[" * 9999, "x" * (2 << 20)]
)
def test_a_damaged_file_admits_nobody(file, content):
    file.create("x", ["inference"])
    file.path.write_text(content)
    with pytest.raises(InvalidSettingsError, match="damaged"):
        file.read()


def test_a_running_verifier_learns_of_new_and_revoked_keys(file):
    verifier = Verifier(file)
    before = verifier.has_keys
    key, stored = file.create("x", ["admin"])
    assert (before, verifier.has_keys) == (False, True)
    assert verifier.grant(key) is not None
    assert verifier.grant(key + "x") is None
    file.revoke(stored.id)
    assert verifier.grant(key) is None
    with pytest.raises(NotFoundError):
        file.revoke(stored.id)


def test_the_operator_has_a_key_from_the_environment(file):
    verifier = Verifier(file, "a key of the operator")
    assert verifier.has_keys
    grant = verifier.grant("a key of the operator")
    assert grant is not None
    assert grant.scopes == set(SCOPES)
    assert verifier.grant("") is None


def test_nonsense_makes_no_key(file):
    for name in ("", "x" * 101, "a\nb", "\u00e9"):
        with pytest.raises(InvalidRequestError):
            file.create(name, ["admin"])
    with pytest.raises(InvalidRequestError):
        file.create("x", [])
    with pytest.raises(InvalidReferenceError):
        file.create("x", ["admin"], ["../x"])
    assert not Path(file.path).exists()
