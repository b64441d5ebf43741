"""Where a learner's time goes, by phases."""

import time

import pytest
import torch

from iris_ray.learner.stopwatch import Stopwatch


def test_phases_share_all_the_time_that_passed():
    stopwatch = Stopwatch(torch.device("cpu"))
    begin = time.perf_counter()
    stopwatch.lap()
    with stopwatch("outer"):
        time.sleep(0.02)
        with stopwatch("inner"):
            time.sleep(0.04)
        time.sleep(0.02)
    time.sleep(0.03)
    with stopwatch("inner"):
        time.sleep(0.01)
    seconds, passed = stopwatch.lap(), time.perf_counter() - begin
    assert set(seconds) == {"outer", "inner", "other"}
    assert sum(seconds.values()) == pytest.approx(passed, abs=1e-3)
    assert seconds["outer"] >= 0.04
    assert seconds["inner"] >= 0.05
    assert seconds["other"] >= 0.03


def test_a_lap_begins_where_the_last_one_ended():
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch("a"):
        stopwatch.lap()
        assert set(stopwatch.lap()) == {"a"}
    stopwatch.lap()
    assert set(stopwatch.lap()) == {"other"}


def test_a_phase_ends_with_an_error_too():
    stopwatch = Stopwatch(torch.device("cpu"))
    with pytest.raises(ValueError, match="no"), stopwatch("a"):
        raise ValueError("no")
    stopwatch.lap()
    assert set(stopwatch.lap()) == {"other"}
