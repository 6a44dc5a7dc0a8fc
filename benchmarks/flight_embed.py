"""`embed` in SQL beside the same texts given to the runtime: processor time of both, in turns."""

import asyncio
import statistics
import time
from pathlib import Path
from random import Random

from benchmarks.models import test_data
from hyprstream.runtime import Caller as TextCaller
from hyprstream.runtime import Model, Runtime, Settings
from hyprstream.runtime.warehouse.served import ServedBrain
from hyprstream.runtime.warehouse.warehouse import Caller, Warehouse
from hyprstream.vectors.store import VectorStore

NUM_TEXTS = 10_000
_TURNS = 5  # each on so many parts of the texts
_WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "river",
    "slow",
    "stone",
    "light",
    "paper",
    "green",
    "runs",
    "over",
    "under",
    "with",
    "and",
    "of",
]


def texts(number: int) -> list[str]:
    """Make texts of 4 to 24 words, none twice."""
    random = Random(0)  # noqa: S311 - no secret
    return [
        " ".join([*random.choices(_WORDS, k=random.randint(3, 23)), str(i)]) for i in range(number)
    ]


def embed(folder: Path) -> None:
    """Measure and print."""
    ref = test_data() / "minilm" / "gguf" / "all-MiniLM-L6-v2-Q8_0.gguf"
    settings = Settings(home=folder / "home")
    model = Model.load(ref, settings=settings)
    shares, rates = asyncio.run(_measure(model, settings, folder))
    print(f"\nembed over {NUM_TEXTS} rows with {ref.name}: {statistics.median(rates):.0f} texts "
          f"in a second of processor time, {100 * statistics.median(shares):.0f}% of the "
          f"runtime's own ({100 * min(shares):.0f} to {100 * max(shares):.0f}%)")  # fmt: skip


async def _measure(
    model: Model, settings: Settings, folder: Path
) -> tuple[list[float], list[float]]:
    shares, rates = [], []
    size = NUM_TEXTS // _TURNS
    async with Runtime(model, settings) as runtime:
        brain = ServedBrain(runtime, asyncio.get_running_loop(), "")
        with Warehouse(None, VectorStore(folder / "none"), brain=brain) as warehouse:
            me = Caller("benchmark", can_write=True)
            all_texts = texts(NUM_TEXTS)
            warehouse.query(me, "CREATE TABLE t (number INT, content TEXT)")
            for start in range(0, NUM_TEXTS, 100):
                rows = enumerate(all_texts[start : start + 100], start)
                values = ", ".join(f"({number}, '{text}')" for number, text in rows)
                warehouse.query(me, f"INSERT INTO t VALUES {values}")  # noqa: S608 - ours
            await runtime.text.embed(all_texts[:200], TextCaller())
            for turn in range(_TURNS):
                start = turn * size
                query = (
                    f"SELECT embed(content) AS v FROM t "  # noqa: S608 - numbers
                    f"WHERE number >= {start} AND number < {start + size}"
                )
                began = time.process_time()
                await runtime.text.embed(all_texts[start : start + size], TextCaller())
                alone = time.process_time() - began
                began = time.process_time()
                found = await asyncio.to_thread(warehouse.query, me, query)
                in_sql = time.process_time() - began
                assert len(found) == size
                shares.append(alone / in_sql)
                rates.append(size / in_sql)
    return shares, rates
