"""What the program has, as tables: real stores and journals, and whose rows they are."""

import json
from datetime import UTC, datetime

import pyarrow as pa
import pytest

from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.journal import Journal
from hyprstream.runtime.journal_rows import Action, Decision, RequestRow
from hyprstream.runtime.models import open_catalog
from hyprstream.runtime.settings import Settings
from hyprstream.runtime.training_place import TrainingPlace, Working
from hyprstream.runtime.warehouse.live import live_tables, visible
from hyprstream.runtime.warehouse.runs import training_runs
from hyprstream.train.sample import Sample
from hyprstream.vectors.store import VectorStore
from tests.runtime.adapted_models import commit, trained
from tests.server.tiny import make_home

ACTIONS: tuple[Action, ...] = ("published", "rolled_back")
POET, CLERK = AdapterName("poet"), AdapterName("team/clerk")


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    home = tmp_path_factory.mktemp("live")
    model = make_home(home)
    settings = Settings(home=home)
    with open_adapters(settings) as adapters:
        version = commit(adapters, "candidate", model, trained(model, 9))
        adapters.tag("poet:candidate", adapters.resolve("candidate"))
    journal = Journal(settings.journal_file, clock=lambda: 1_700_000_000.0)
    sample = Sample(token_ids=(1, 2, 3), counts=(False, True, True))
    for name in (POET, CLERK):
        journal.append(name, sample, "chatcmpl-1", held_out=name == POET)
        numbers = {"steps": 4.0, "seconds": 1.5}
        for action in ACTIONS:
            journal.decide(
                Decision(adapter=name, action=action, reasons=("good",), numbers=numbers)
            )
    for number, asked in enumerate((POET, CLERK, None)):
        journal.request(
            RequestRow(id=f"chatcmpl-{number}", adapter=asked, version=None, outcome="stop",
                       prompt_tokens=3, completion_tokens=4)
        )  # fmt: skip
    journal.close()
    assert version
    return settings


@pytest.fixture
def tables(settings):
    with open_adapters(settings) as adapters:
        yield live_tables(
            settings, open_catalog(settings), adapters, VectorStore(settings.vectors_folder)
        )


def test_the_tables_hold_what_the_store_and_the_journal_hold(tables):
    found = {name: source().to_pylist() for name, source in tables.items()}
    assert {row["name"] for row in found["adapters"]} == {"poet", "team/clerk", "candidate"}
    poets = [row["version"] for row in found["versions"] if row["adapter"] == "poet"]
    assert len(set(poets)) == 2  # the one that serves, and the one that has a tag
    samples = {row["adapter"]: row for row in found["samples"]}
    assert samples["poet"]["held_out"]
    assert samples["poet"]["num_tokens"] == 3
    assert [row["prompt_tokens"] for row in found["requests"]] == [3, 3, 3]
    assert not any("chatcmpl" in str(row) for rows in found.values() for row in rows)
    assert samples["poet"]["source"] in {row["id"] for row in found["requests"]}
    runs = [(row["adapter"], row["state"], row["step"]) for row in found["training_runs"]]
    assert runs == [("poet", "published", 4), ("team/clerk", "published", 4)]
    kinds = {(row["kind"], row["action"]) for row in found["events"]}
    assert kinds >= {("decision", "rolled_back"), ("request", "stop")}
    times = [row["at"] for row in found["events"]]
    assert times == sorted(times)


def test_every_table_says_whose_its_rows_are(tables):
    limited = visible(tables, frozenset({POET}))
    assert set(limited) == set(tables)
    for name, source in limited.items():
        if name != "models":
            text = json.dumps(source().to_pylist(), default=str)
            assert "clerk" not in text, name
            assert "candidate" not in json.dumps(
                [row.get("name", row.get("adapter")) for row in source().to_pylist()]
            )
    assert [row["adapter"] for row in limited["requests"]().to_pylist()] == ["poet"]
    with pytest.raises(KeyError):
        visible({"new": tables["samples"]}, frozenset({POET}))


def test_runs_on_files_are_listed_while_they_are_at_work_and_after(settings):
    at = datetime(2026, 1, 1, tzinfo=UTC)
    versions = pa.Table.from_pylist(
        [
            {"adapter": "poet", "parent": "a", "version": "b", "created_at": at,
             "made_by": "hyprstream 1, training",
             "metrics": json.dumps({"num_steps": 7.0, "train_loss": 1.5, "held_out_loss": 2.0})},
            {"adapter": "poet", "parent": None, "version": VersionId("a"), "created_at": at,
             "made_by": "somebody", "metrics": "{}"},
        ]
    )  # fmt: skip
    place = TrainingPlace(settings.training_folder, "team/clerk")
    with open_adapters(settings) as adapters:
        runs = training_runs(
            adapters, settings.training_folder, lambda: versions, lambda: pa.table({"action": []})
        )
        with place.hold():
            place.tell(Working(pid=1, source="data", began=1.5, phase="training", step=3,
                               num_steps=9, loss=0.5))  # fmt: skip
            over, running = runs().to_pylist()
        assert len(runs()) == 1
    assert (over["state"], over["step"], over["held_out_loss"]) == ("stored", 7, 2.0)
    assert (running["adapter"], running["state"], running["num_steps"]) == (
        "team/clerk",
        "running",
        9,
    )
    assert running["at"] == datetime.fromtimestamp(1.5, UTC)
