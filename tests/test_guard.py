"""Nothing that every pair, step or iteration takes has become more expensive."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from run_process import WAIT_S

from benchmarks.guard import costs
from benchmarks.guard.__main__ import grown
from benchmarks.guard.counting import calls, flops, operations
from iris_ray.round_buffer import RoundBuffer

BASELINE = {"buffer_calls": 10.0, "step_time": 0.5}


def test_nothing_costs_more_than_before() -> None:
    command = [sys.executable, "-m", "benchmarks.guard", "--json"]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=WAIT_S, cwd=Path(__file__).parents[1]
    )
    report = json.loads(done.stdout)
    assert report["grown"] == []
    assert report["costs"].keys() == report["baseline"].keys() == report["margins"].keys()
    assert done.returncode == 0


def test_what_costs_more_is_told_with_both_figures() -> None:
    assert grown({"buffer_calls": 10.9, "step_time": 0.74}, BASELINE) == []
    assert grown({"buffer_calls": 11.1, "step_time": 0.76}, BASELINE) == [
        "buffer_calls: 11.1 now, 10 before: +11%, 10% is allowed",
        "step_time: 0.76 now, 0.5 before: +52%, 50% is allowed",
    ]


def test_a_buffer_that_looks_through_all_it_has_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "PAIRS", 512)
    assert min(costs.buffer_time_growth() for _ in range(3)) < 1.5
    add = RoundBuffer.add

    def add_slowly(self: RoundBuffer, holder: str, position: int, pair: costs.StoredPair) -> bool:
        sorted(range(len(self.pair_ids)), reverse=True)
        return add(self, holder, position, pair)

    monkeypatch.setattr(RoundBuffer, "add", add_slowly)
    assert costs.buffer_time_growth() > 2


def test_counters_count_what_is_done() -> None:
    tensor = torch.ones(4, 4)
    assert calls(lambda: [abs(number) for number in (1, 2, 3)]) >= 5
    assert operations(lambda: tensor + tensor * tensor) == 2
    assert flops(lambda: tensor @ tensor) == 2 * 4**3
