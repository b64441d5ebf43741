"""Updates of one model, with some generators at the same time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import ray

from actors.environment import generator_environment
from actors.weight_store import WeightStore
from benchmarks.sync.ends import Publisher, Receiver
from benchmarks.sync.workload import SHAPES
from iris_ray.config import RunConfig

Say = Callable[[str], None]
Row = dict[str, Any]
START_TIMEOUT_S = 900
KEPT = 4  # versions that the object store has room for: two are kept, one is pulled, one is published


@dataclass(frozen=True)
class Settings:
    """What to measure; `generators` are numbers of them that update at the same time."""

    generators: list[int]
    repeats: int = 5
    bucket_mib: int = 64
    buffer_mib: int = 512
    transport: str = "object_store"
    eager: bool = True

    def config(self) -> RunConfig:
        return RunConfig.from_dict(
            {
                "model": {"path": "made-here", "dtype": "bfloat16"},
                "data": {"path": "made-here", "max_prompt_tokens": 32, "max_response_tokens": 32},
                "generation": {"concurrency": 16, "enforce_eager": self.eager},
                "sync": {
                    "bucket_mib": self.bucket_mib,
                    "buffer_mib": self.buffer_mib,
                    "transport": self.transport,
                },
            }
        )


def measure(settings: Settings, millions: int, say: Say) -> Iterator[Row]:
    """A row for each number of generators: medians over repeats, each with its least and greatest value.

    An update with several generators takes as long as it takes the last of them.
    """
    with _cluster(settings, millions) as (publisher, receivers):
        size = ray.get(publisher.size.remote(), timeout=START_TIMEOUT_S)
        version = 0
        for count in settings.generators:
            taken: list[dict[str, float]] = []
            # The first updates warm up: the object store touches its memory for the first time.
            for repeat in range(-KEPT, settings.repeats):
                say(f"{millions} M, {count} generators, update {max(0, repeat + 1)} of {settings.repeats}")
                taken.append(_update(publisher, receivers[:count], version))
                version += 1
            yield _row(size, count, taken[KEPT:])


def _update(publisher: Any, receivers: list[Any], version: int) -> dict[str, float]:
    ray.get(publisher.change.remote())
    copy = ray.get(publisher.copy.remote())
    updates = [receiver.update.remote(version) for receiver in receivers]
    published = ray.get(publisher.publish.remote(version))
    updated = ray.get(updates)
    most = {key: max(each[key] for each in updated) for key in updated[0]}
    return {
        "publish_to_serving_s": most["end"] - published["begin"],
        "paused_s": most["paused_s"],
        "copy_s": copy,
        "learner_blocked_s": published["learner_blocked_s"],
        "update_s": most["update_s"],
        "probe_s": most["probe_s"],
        "parity_max_abs_diff": most["parity"],
    }


def _row(size: dict[str, int], count: int, taken: list[dict[str, float]]) -> Row:
    row: Row = size | {"generators": count}
    for update in taken:
        update["paused_copies"] = update["paused_s"] / update["copy_s"]
        update["blocked_copies"] = update["learner_blocked_s"] / update["copy_s"]
        update["bytes_per_s"] = size["bytes"] / update["publish_to_serving_s"]
        update["copy_bytes_per_s"] = size["bytes"] / update["copy_s"]
    for key in taken[0]:
        values = [update[key] for update in taken]
        row |= {key: median(values), f"{key}_min": min(values), f"{key}_max": max(values)}
    return row


@contextmanager
def _cluster(settings: Settings, millions: int) -> Iterator[tuple[Any, list[Any]]]:
    config, shape = settings.config(), SHAPES[millions]
    count = max(settings.generators)
    ray.init(
        num_cpus=count + 2,
        object_store_memory=KEPT * 2 * 1_200_000 * millions + (256 << 20),
        include_dashboard=False,
        log_to_driver=False,
    )
    try:
        with TemporaryDirectory() as folder:
            store = WeightStore.remote()  # type: ignore[attr-defined]
            publisher = Publisher.remote(config, shape, store, folder)  # type: ignore[attr-defined]
            ray.get(publisher.size.remote(), timeout=START_TIMEOUT_S)
            environment = {"env_vars": generator_environment(config.generation)}
            receivers = [
                Receiver.options(runtime_env=environment).remote(  # type: ignore[attr-defined]
                    config, store, f"generator-{index}"
                )
                for index in range(count)
            ]
            ray.get([receiver.start.remote(folder) for receiver in receivers], timeout=START_TIMEOUT_S)
            yield publisher, receivers
            ray.get([receiver.stop.remote() for receiver in receivers])
    finally:
        ray.shutdown()
