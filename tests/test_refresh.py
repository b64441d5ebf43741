"""The online game's rule: no pair is trained on that is older than `max_staleness` versions."""

import numpy as np
import pytest
from conftest import run_config
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.errors import ConfigError
from iris_ray.game import Round
from iris_ray.refresh import newest_version, next_version
from iris_ray.round_buffer import RoundBuffer, StoredPair

ROUND = Round(iteration=3, version=7, alpha=1.0, gap=0.0, reason="")


@given(st.integers(1, 60), st.integers(1, 8), st.integers(1, 5), st.integers(0, 3), st.data())
def test_staleness_is_bounded_however_slow_the_generators_are(prompts, batch, every, most, data):
    """Leases, answers and steps come in any order that generators and learner allow."""
    buffer = RoundBuffer(
        ROUND,
        np.arange(prompts),
        epochs=1,
        batch_size=batch,
        max_ahead=data.draw(st.integers(batch, 60)),
        seed=0,
        refresh_every=every,
        max_staleness=most,
    )
    leased: list[tuple[int, int]] = []
    step = 0
    while step < buffer.steps:
        possible = []
        if positions := buffer.lease("a", data.draw(st.integers(1, 9))):
            leased += [(position, buffer.version) for position in positions]
        if leased:
            possible.append("write")
        if buffer.is_ready(step):
            possible.append("train")
        assert possible, "neither side can go on"
        if data.draw(st.sampled_from(possible)) == "write":
            position, version = leased.pop(data.draw(st.integers(0, len(leased) - 1)))
            assert buffer.add("a", position, StoredPair("chunk", position, 2, version))
        else:
            stale = buffer.staleness(step)
            assert min(stale) >= 0
            assert max(stale) <= most
            buffer.commit(step)
            step += 1
            assert buffer.version == newest_version(ROUND, step, every)
    assert buffer.ledger.counts().committed == prompts


@pytest.mark.parametrize(
    ("steps", "every", "versions", "following"),
    [
        (5, None, [7, 7, 7, 7, 7], 8),
        (5, 1, [7, 8, 9, 10, 11], 12),
        (5, 2, [7, 7, 8, 8, 9], 10),
        (4, 2, [7, 7, 8, 8], 9),
        (4, 9, [7, 7, 7, 7], 8),
    ],
)
def test_versions_follow_one_another_without_a_gap(steps, every, versions, following):
    assert [newest_version(ROUND, step, every) for step in range(steps)] == versions
    assert next_version(ROUND, steps, every) == following


@pytest.mark.parametrize(
    ("schedule", "learner", "message"),
    [
        ({"refresh": 4, "epochs": 1}, {}, "schedule.refresh=4 needs learner.reference=generator"),
        ({"refresh": 4}, {"reference": "generator"}, "needs schedule.epochs=1, not 2"),
        ({"refresh": 0}, {}, "schedule.refresh"),
        ({"refresh": "sometimes"}, {}, "schedule.refresh"),
    ],
)
def test_settings_that_do_not_fit_the_online_game_are_refused(schedule, learner, message):
    with pytest.raises(ConfigError) as refused:
        run_config(schedule=schedule, learner=learner)
    assert message in str(refused.value)
