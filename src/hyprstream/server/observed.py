"""The engine, its adapters and their learning, as Prometheus reads them at one moment.

The gauges whose names begin with `vllm:` are those by which the endpoint picker of the Gateway
API Inference Extension chooses a server (its proposal 003, model server protocol). Labels name
at most `server.max_metric_adapters` adapters; `hyprstream_adapters` counts all.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hyprstream.refs import AdapterName, VersionId
from hyprstream.runtime import EngineStats, LearningStats
from hyprstream.runtime.fitting_request import FittingStats
from hyprstream.runtime.runtime import Runtime


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """What there is to tell.

    Attributes:
        engine: None while it does not run.
        learning: None where nothing learns.
        fitting: Requests that were adapted to their prompts, and steps; None where none are.
        resident: Adapters that are in slots.
        waiting_for: Adapters that requests wait for.
        generations: Of the adapters that are shown, how often the name was moved.
        num_adapters: All adapters of the home.
        at: Seconds since 1970.
    """

    engine: EngineStats | None = None
    learning: LearningStats | None = None
    fitting: FittingStats | None = None
    resident: tuple[AdapterName, ...] = ()
    waiting_for: tuple[AdapterName, ...] = ()
    generations: Mapping[AdapterName, int] = field(default_factory=dict)
    num_adapters: int = 0
    at: float = 0.0


async def observe(
    runtime: Runtime, most: int, may_see: Callable[[AdapterName], bool] = lambda _: True
) -> Moment:
    """Look at a runtime; at most so many adapters are told by their names, of those one may see."""
    engine = await runtime.stats() if runtime.failure is None else None

    def moves() -> tuple[dict[AdapterName, int], int]:
        names = [adapter.name for adapter in runtime.adapters.list()]
        shown = [name for name in names if may_see(name)][:most]
        return {name: len(runtime.adapters.history(name)) for name in shown}, len(names)

    generations, number = await runtime.in_pool(moves)

    def named(versions: Iterable[VersionId]) -> tuple[AdapterName, ...]:
        found = {runtime.adapter_name(version) for version in versions}
        return tuple(sorted(name for name in found if name is not None and may_see(name)))[:most]

    return Moment(
        engine=engine,
        learning=None if runtime.learning is None else runtime.learning.stats,
        fitting=None if runtime.fitting is None else runtime.fitting.stats,
        resident=() if engine is None else named(engine.resident),
        waiting_for=() if engine is None else named(engine.waiting_for),
        generations=generations,
        num_adapters=number,
        at=time.time(),
    )


class Observed:
    """Collects what the last look saw; a collector of `prometheus_client`."""

    def __init__(self) -> None:
        self.moment = Moment()

    def collect(self) -> Iterator[Metric]:
        """Write it as metrics."""
        moment = self.moment
        yield from _adapters(moment)
        if moment.engine is not None:
            yield from _engine(moment.engine)
            yield _lora_requests(moment, moment.engine)
        if moment.learning is not None:
            yield from _learning(moment.learning, moment.generations.keys())
        if moment.fitting is not None:
            yield from _fitting(moment.fitting)


def _engine(engine: EngineStats) -> Iterator[Metric]:
    used = engine.num_blocks - engine.num_free_blocks
    share = used / engine.num_blocks if engine.num_blocks else 0.0
    for name, what, value in (
        ("hyprstream_num_waiting", "Sequences that wait.", engine.num_waiting),
        ("hyprstream_num_running", "Sequences that are computed.", engine.num_running),
        ("hyprstream_kv_usage_ratio", "Share of KV blocks that sequences hold.", share),
        ("hyprstream_adapter_bytes", "Host memory of adapter versions.", engine.adapter_bytes),
        ("vllm:num_requests_waiting", "As hyprstream_num_waiting.", engine.num_waiting),
        ("vllm:num_requests_running", "As hyprstream_num_running.", engine.num_running),
        ("vllm:kv_cache_usage_perc", "As hyprstream_kv_usage_ratio; 1 is all.", share),
    ):
        yield GaugeMetricFamily(name, what, value)
    counts = engine.counts
    for name, what, value in (
        ("prefix_tokens", "Tokens looked up among those computed before.", counts.begun_tokens),
        ("prefix_hit_tokens", "Of them, those that were found.", counts.shared_tokens),
        ("preemptions", "Sequences that lost their blocks before their end.", counts.preemptions),
        ("draft_tokens", "Tokens that were guessed.", counts.drafts),
        ("draft_hit_tokens", "Guesses that turned out right.", counts.right_drafts),
    ):
        yield CounterMetricFamily(f"hyprstream_{name}", what, value)


def _lora_requests(moment: Moment, engine: EngineStats) -> Metric:
    """Write the gauge of adapters: one series, whose value is when it was made."""
    labels = {
        "max_lora": str(engine.num_slots),
        "running_lora_adapters": ",".join(moment.resident),
        "waiting_lora_adapters": ",".join(moment.waiting_for),
    }
    metric = GaugeMetricFamily(
        "vllm:lora_requests_info", "Adapters in slots, and those waited for.", labels=list(labels)
    )
    metric.add_metric(list(labels.values()), moment.at)
    return metric


def _adapters(moment: Moment) -> Iterator[Metric]:
    yield GaugeMetricFamily("hyprstream_adapters", "Adapters of this home.", moment.num_adapters)
    resident = GaugeMetricFamily(
        "hyprstream_adapter_resident", "Whether an adapter is in a slot.", labels=["adapter"]
    )
    generation = GaugeMetricFamily(
        "hyprstream_adapter_generation", "How often its name was moved.", labels=["adapter"]
    )
    for name, number in moment.generations.items():
        resident.add_metric([name], float(name in moment.resident))
        generation.add_metric([name], number)
    yield resident
    yield generation


def _learning(stats: LearningStats, shown: Iterable[AdapterName]) -> Iterator[Metric]:
    decisions = CounterMetricFamily(
        "hyprstream_learning_decisions", "Decisions of learning.", labels=["action"]
    )
    for action, number in stats.decided.items():
        decisions.add_metric([action], number)
    yield decisions
    samples = GaugeMetricFamily(
        "hyprstream_samples", "Samples that are there to learn from.", labels=["state"]
    )
    for state in ("waiting", "taken", "held_out", "replayed"):
        number = sum(counts.get(state, 0) for counts in stats.samples.values())
        samples.add_metric([state], number)
    yield samples
    loss = GaugeMetricFamily(
        "hyprstream_training_loss_nats", "Loss of the last step, a token.", labels=["adapter"]
    )
    names = set(shown)
    for name, nats in stats.losses.items():
        if name in names:
            loss.add_metric([name], nats)
    yield loss
    for total, what, value in (
        ("steps", "Optimizer steps.", stats.num_steps),
        ("tokens", "Tokens that were computed for them.", stats.num_tokens),
    ):
        yield CounterMetricFamily(f"hyprstream_training_{total}", what, value)
    failed = float(stats.has_failed)
    yield GaugeMetricFamily("hyprstream_learning_failed", "Learning has switched off.", failed)


def _fitting(stats: FittingStats) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "hyprstream_adapted_requests", "Requests adapted to their prompts.", labels=["outcome"]
    )
    for outcome, number in (("fitted", stats.num_fitted), ("failed", stats.num_failed)):
        ended.add_metric([outcome], number)
    yield ended
    what = "Optimizer steps on the prompts of requests."
    yield CounterMetricFamily("hyprstream_adapted_steps", what, stats.num_steps)
