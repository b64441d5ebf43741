"""How long calls occupy the actors that all generators share: `python -m benchmarks.planning.calls`.

The real actors on a Ray of their own, asked by this process for more than they can answer at once. The
medians are the defaults of `CallSeconds`.
"""

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import ray
from datasets import Dataset

from actors.controller import Controller
from actors.sample_buffer import SampleBuffer
from actors.weight_store import WeightStore
from iris_ray.chunks import pack
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair, Update, VersionSpan
from iris_ray.game import Round
from iris_ray.leases import RoundKey
from iris_ray.run_folder import RunFolder
from iris_ray.scratch.tokenizer import train_tokenizer
from iris_ray.weights.manifest import Bucket, Probe
from iris_ray.weights.shares import WeightShare

PROMPTS, PROMPT, RESPONSE = 16_384, 50, 60  # rows, and tokens of each
REPEATS = 3
MANY, FULL, WAITING = 300, 64, 300  # calls at a time, pairs in a large call, generators that wait


@ray.remote(num_cpus=0)
class Alive:
    """Answers as a generator does."""

    async def heartbeat(self) -> dict[str, Any]:
        return {"version": 0, "generated_tokens": 0, "busy_seconds": 0.0, "requests": 0}


@ray.remote(num_cpus=0)
class Asker:
    """Asks as the generator pool does."""

    async def ask(self, handles: list[Any], times: int) -> float:
        begin = time.monotonic()
        await asyncio.gather(
            *[asyncio.wait_for(handles[i % len(handles)].heartbeat.remote(), 300) for i in range(times)]
        )
        return (time.monotonic() - begin) / times


def each(call: Callable[[int], Any], times: int) -> float:
    """Seconds per call of so many that are asked at once."""
    begin = time.monotonic()
    ray.get([call(index) for index in range(times)])
    return (time.monotonic() - begin) / times


def make_files(folder: Path, batch: int) -> RunConfig:
    config = RunConfig.from_dict(
        {
            "run": {"name": f"calls-{batch}", "folder": str(folder)},
            "model": {"path": str(folder / "model")},
            "data": {"path": "made-here"},
            "learner": {"batch_size": batch},
            "generation": {"max_ahead": PROMPTS},
            "schedule": {"epochs": 1},
        }
    )
    row = {"prompt_tokens": [1] * PROMPT, "response_tokens": [1] * RESPONSE, "response_text": ""}
    data = RunFolder(config.folder).data
    rows = [{"prompt_id": index} | row for index in range(PROMPTS)]
    Dataset.from_list(rows).save_to_disk(data / "train")
    Dataset.from_list(rows[:1]).save_to_disk(data / "holdout")
    return config


def pairs(count: int) -> list[SelfPlayPair]:
    one = SelfPlayPair(
        1, 0, [1] * PROMPT, [1] * RESPONSE, [1] * RESPONSE, "stop", 0, [VersionSpan(0, RESPONSE)]
    )
    return [one] * count


def buffer_calls(folder: Path, batch: int) -> dict[str, float]:
    """Of a buffer whose batches are so large; `share` is a batch and its commit."""
    config = make_files(folder, batch)
    buffer: Any = SampleBuffer.remote(config)  # type: ignore[attr-defined]
    ray.get(buffer.open_round.remote(Round(1, 0, 1.0, 0.0, "")))
    key, found = RoundKey(0, 1), {}
    large = (PROMPTS - MANY) // FULL
    found["lease_1"] = each(lambda _: buffer.lease.remote("a", 1), MANY)
    found["lease_many"] = each(lambda _: buffer.lease.remote("a", FULL), large)
    found["add_1"] = each(lambda i: buffer.add.remote("a", key, [i], pack(pairs(1))), MANY)

    def add(index: int) -> Any:
        first = MANY + index * FULL
        return buffer.add.remote("a", key, range(first, first + FULL), pack(pairs(FULL)))

    found["add_many"] = each(add, large)
    steps = min(MANY, MANY * 8 // batch, (MANY + large * FULL) // batch)
    found["share"] = each(lambda step: buffer.share.remote(step, 0, 1), steps)
    found["share"] += each(lambda step: buffer.commit.remote(step), steps)
    ray.get(buffer.close_round.remote())
    found["pause"] = each(lambda _: buffer.pause.remote(False), MANY)
    waiting = [buffer.lease.remote("a", 1) for _ in range(WAITING)]
    ray.get(buffer.pause.remote(False))
    found["pause_waiting"] = each(lambda _: buffer.pause.remote(False), 30)
    ray.get(buffer.close.remote())
    ray.get(waiting)
    ray.kill(buffer)
    return found


def other_calls(folder: Path) -> dict[str, float]:
    config = make_files(folder, 7)
    store: Any = WeightStore.remote()  # type: ignore[attr-defined]
    ray.get(store.publish.remote(WeightShare(0, 0, 1, [Bucket(None, [])], Probe([[1, 2]], [[0.0]]))))
    RunFolder(config.folder).samples.mkdir()
    tokenizer = train_tokenizer(["no text is made here"], 300)
    controller: Any = Controller.remote(config, "none", tokenizer, True)  # type: ignore[attr-defined]
    update = Update("generator-0", 0, 1.0, 0.1, 1e-6)
    ray.get(controller.record_update.remote(update))
    alive: list[Any] = [Alive.remote() for _ in range(2)]  # type: ignore[attr-defined]
    asker: Any = Asker.remote()  # type: ignore[attr-defined]
    ray.get(asker.ask.remote(alive, 10))
    return {
        "get": each(lambda _: store.get.remote(0), MANY),
        "record": each(lambda _: controller.record_update.remote(update), MANY),
        "heartbeat": ray.get(asker.ask.remote(alive, MANY)),
    }


def measure() -> dict[str, float]:
    with TemporaryDirectory() as name:
        folder = Path(name)
        small, large = buffer_calls(folder / "small", 8), buffer_calls(folder / "large", 512)
        per_pair = {
            call: max(0.0, (small[f"{call}_many"] - small[f"{call}_1"]) / (FULL - 1))
            for call in ("lease", "add")
        }
        share_pair = max(0.0, (large["share"] - small["share"]) / (512 - 8))
        return {
            "lease": max(0.0, small["lease_1"] - per_pair["lease"]),
            "lease_pair": per_pair["lease"],
            "add": max(0.0, small["add_1"] - per_pair["add"]),
            "add_pair": per_pair["add"],
            "share": max(0.0, small["share"] - 8 * share_pair),
            "share_pair": share_pair,
            "wake": max(0.0, (small["pause_waiting"] - small["pause"]) / WAITING),
            **other_calls(folder / "others"),
        }


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    measured = [measure() for _ in range(REPEATS)]
    print(json.dumps({call: median(each[call] for each in measured) for call in measured[0]}, indent=1))
