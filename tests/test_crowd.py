"""More generators wait than Ray lets in at a time by itself: real actors, callers that only wait."""

from pathlib import Path

import ray
from run_process import WAIT_S

from actors import names
from actors.sample_buffer import SampleBuffer
from actors.weight_store import WeightStore
from benchmarks.control_plane.settings import RUN, Settings

CROWD = 1_200


def test_a_buffer_answers_while_generators_wait_for_work(ray_here: None, tmp_path: Path) -> None:
    settings = Settings()
    settings.write_data(tmp_path, 8)
    buffer = names.start(SampleBuffer, RUN, names.SAMPLE_BUFFER, settings.config(tmp_path))
    waiting = [buffer.lease.remote(f"generator-{i}", 1) for i in range(CROWD)]
    assert ray.get(buffer.status.remote(), timeout=WAIT_S)["leased"] == 0
    ray.get(buffer.close.remote(), timeout=WAIT_S)
    assert ray.get(waiting, timeout=WAIT_S) == [None] * CROWD


def test_a_store_answers_while_generators_wait_for_weights(ray_here: None) -> None:
    store = names.start(WeightStore, RUN, names.WEIGHT_STORE)
    waiting = [store.get.remote(1) for _ in range(CROWD)]
    for attempt in range(1, 31):  # it may overtake who has just come
        ray.get(store.clear.remote(attempt), timeout=WAIT_S)
        answered, left = ray.wait(waiting, num_returns=CROWD, timeout=1)
        if not left:
            break
    assert ray.get(answered) == [None] * CROWD
