"""Numbers for Prometheus: what they say, read by its own parser, and how many there can be."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from hyprstream.engine.stats import Counts, EngineStats
from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime.adapters import open_adapters
from hyprstream.runtime.fitting_request import FittingStats
from hyprstream.runtime.learners import LessonProgress
from hyprstream.runtime.learning_stats import LearningStats, Progress
from hyprstream.runtime.settings import Settings
from hyprstream.server.metrics import Metrics
from hyprstream.server.observed import Moment
from tests.runtime.adapted_models import commit, trained

LONG = "Tell me again and again of the sea, of ships and of sailors who came home late. " * 4


def read(text: str) -> dict[tuple[str, frozenset], float]:
    """All series of a page, by name and labels."""
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(page: dict, name: str, **labels: str) -> float:
    return page[name, frozenset(labels.items())]


@pytest.fixture
def page(client):
    return lambda: read(client.get("/metrics").text)


def test_answers_are_counted_and_what_was_computed_before_is_found(client, page):
    before = page()
    body = {"model": "poet", "max_tokens": 4, "stream": True,
            "messages": [{"role": "user", "content": LONG}]}  # fmt: skip
    for _ in range(2):
        client.post("/v1/chat/completions", json=body).raise_for_status()
    after = page()

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - before.get((name, frozenset(labels.items())), 0.0)

    assert grown("hyprstream_generation_tokens_total") == 8
    assert grown("hyprstream_time_to_first_token_seconds_count") == 2
    assert grown("hyprstream_inter_token_seconds_count") > 0
    tokens = grown("hyprstream_prefix_tokens_total")
    assert tokens == grown("hyprstream_prompt_tokens_total")
    # The second answer found the prompt of the first, but for its last block.
    assert tokens / 2 - 16 <= grown("hyprstream_prefix_hit_tokens_total") < tokens / 2
    assert grown("hyprstream_http_requests_total", route="/v1/chat/completions", status="200") == 2
    assert 0 <= value(after, "hyprstream_kv_usage_ratio") <= 1
    assert value(after, "hyprstream_num_waiting") == 0


def test_the_gauge_of_adapters_is_one_series_that_names_what_is_resident(client, page):
    body = {"model": "team/clerk", "prompt": "x", "max_tokens": 2}
    client.post("/v1/completions", json=body).raise_for_status()
    [(labels, at)] = [(dict(labels), at) for (name, labels), at in page().items()
                      if name == "vllm:lora_requests_info"]  # fmt: skip
    assert labels["max_lora"] == "8"
    assert "team/clerk" in labels["running_lora_adapters"].split(",")
    assert labels["waiting_lora_adapters"] == ""
    assert at > 1.7e9
    found = page()
    assert value(found, "hyprstream_adapter_resident", adapter="team/clerk") == 1
    assert value(found, "hyprstream_adapters") >= 2
    for name in ("num_requests_waiting", "num_requests_running", "kv_cache_usage_perc"):
        assert value(found, f"vllm:{name}") == 0


def test_generations_and_rollbacks_are_told(client, served, page):
    with open_adapters(Settings(home=served.home)) as adapters:
        first = commit(adapters, "moved", served.model, trained(served.model, 5)).version
        second = commit(adapters, "other", served.model, trained(served.model, 6)).version
        adapters.move("moved", second, expected=first)
    try:
        before = page()
        assert value(before, "hyprstream_adapter_generation", adapter="moved") == 2
        client.post("/v1/adapters/moved/rollback", json={}).raise_for_status()
        after = page()
        assert value(after, "hyprstream_adapter_generation", adapter="moved") == 3
        name = "hyprstream_rollbacks_total"
        assert value(after, name) - value(before, name) == 1
    finally:
        for name in ("moved", "other"):
            client.delete(f"/v1/adapters/{name}")


def test_all_of_a_moment_is_written():
    metrics = Metrics(num_requests=lambda: 3, num_adapters=lambda: 1)
    names = tuple(AdapterName(f"a{n}") for n in range(3))
    engine = EngineStats(
        num_waiting=2, num_running=5, num_blocks=10, num_free_blocks=4, num_slots=2,
        resident=frozenset({VersionId("v")}), waiting_for=frozenset(), adapter_bytes=77,
        counts=Counts(preemptions=1, begun_tokens=9, shared_tokens=8, drafts=7, right_drafts=6),
    )  # fmt: skip
    learning = LearningStats(
        decided={"published": 2, "rejected": 1},
        samples={names[0]: {"waiting": 3, "held_out": 1}, names[1]: {"waiting": 4}},
        losses={names[0]: 1.5, AdapterName("not shown"): 9.0},
        num_steps=11,
        num_tokens=12,
        has_failed=True,
    )
    moment = Moment(
        engine=engine, learning=learning, resident=names[:2], waiting_for=names[2:],
        generations=dict.fromkeys(names, 4), num_adapters=200, at=1234.5,
        fitting=FittingStats(num_fitted=3, num_failed=1, num_steps=9),
    )  # fmt: skip
    page = read(metrics.page(moment).decode())
    lora = {"max_lora": "2", "running_lora_adapters": "a0,a1", "waiting_lora_adapters": "a2"}
    assert value(page, "vllm:lora_requests_info", **lora) == 1234.5
    assert value(page, "hyprstream_kv_usage_ratio") == 0.6
    assert value(page, "hyprstream_adapter_resident", adapter="a2") == 0
    assert value(page, "hyprstream_learning_decisions_total", action="published") == 2
    assert value(page, "hyprstream_samples", state="waiting") == 7
    assert value(page, "hyprstream_training_loss_nats", adapter="a0") == 1.5
    assert value(page, "hyprstream_training_steps_total") == 11
    assert value(page, "hyprstream_learning_failed") == 1
    assert value(page, "hyprstream_draft_hit_tokens_total") == 6
    assert value(page, "hyprstream_adapted_requests_total", outcome="failed") == 1
    assert value(page, "hyprstream_adapted_steps_total") == 9
    assert "not shown" not in str(page)
    # The next look does not add to the series of the last one.
    again = read(metrics.page(Moment(at=1.0)).decode())
    assert not [name for name, _ in again if name.startswith("vllm:")]


def test_steps_are_added_up_over_lessons():
    progress = Progress()

    def told(adapter: str, step: int, tokens: int, loss: float | None, parent="p") -> None:
        progress.follow(
            LessonProgress(
                adapter=AdapterName(adapter),
                parent=VersionId(parent),
                phase="learning",
                step=step,
                num_steps=9,
                loss=loss,
                num_tokens=tokens,
            )
        )

    told("a", 0, 0, None)
    told("a", 1, 10, 2.0)
    told("a", 2, 25, 1.5)
    told("a", 2, 25, 1.5)  # judging
    told("a", 0, 0, None)  # again from the same parent
    told("a", 1, 5, 1.4)
    told("b", 1, 7, 3.0)
    told("a", 1, 2, 1.0, parent="q")
    found = progress.stats(decided={}, samples={}, has_failed=False)
    assert (found.num_steps, found.num_tokens) == (5, 39)
    assert found.losses == {"a": 1.0, "b": 3.0}
