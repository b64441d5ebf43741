"""What is guarded: costs of the paths that every pair, step, iteration or weight takes."""

import time
from collections.abc import Callable
from dataclasses import replace
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.guard.counting import calls, flops, operations
from benchmarks.guard.plain_step import PlainStep
from benchmarks.guard.workload import WORKLOAD
from benchmarks.learner.arithmetic import needed_flops
from benchmarks.learner.model import build_model
from iris_ray.config import Alpha, RunConfig
from iris_ray.contracts import PHASES, StepReport
from iris_ray.game import Round
from iris_ray.gap import PairMeans
from iris_ray.learner.self_play_learner import SelfPlayLearner
from iris_ray.records import Records
from iris_ray.round_buffer import RoundBuffer, StoredPair
from iris_ray.run_folder import RunFolder

OPEN = Round(1, version=0, alpha=1.0, gap=0.0, reason="")
BATCH = 32
PAIRS = 2048
GROWN = 8  # times as many, where nothing may cost more for it
MEANS = PairMeans(1.0, -1.0, -9.0, -9.0, 8.0, 8.0, 0.5, 0.5, 1.0)
REPORT = StepReport(0.5, 1.0, -1.0, 1.0, 1.0, 8.0, 8.0, 1.0, False, 1e-5, BATCH, 0, 0, 8.0)


def all_costs() -> dict[str, float]:
    """Every guarded cost by its name. Needs an initialised `torch.distributed` group of one rank."""
    return {cost.__name__: cost() for cost in (*COUNTED, *TIMED)}


def step_flops() -> float:
    """Floating-point operations of an optimiser step over those that its pairs need."""
    pairs = WORKLOAD.batches(2)[1]
    return flops(_step()) / needed_flops(WORKLOAD, pairs).total


def step_operations() -> float:
    """Operations that an optimiser step asks torch for."""
    return operations(_step())


def step_calls() -> float:
    """Calls of functions in an optimiser step, DeepSpeed's and torch's Python included."""
    return calls(_step())


def buffer_calls() -> float:
    """Calls of functions that a pair takes on its way through the buffer's round."""
    return calls(lambda: _play_round(PAIRS)) / PAIRS


def buffer_growth() -> float:
    """The same in a larger round, over that."""
    return calls(lambda: _play_round(GROWN * PAIRS)) / GROWN / PAIRS / buffer_calls()


def records_calls() -> float:
    """Calls of functions that the records of a step take, in a run of some iterations."""
    return _records(16) / 16


def records_growth() -> float:
    """The same in a run with more iterations, over that."""
    return _records(GROWN * 16) / GROWN / 16 / records_calls()


def buffer_time_growth() -> float:
    """Seconds of a pair in a larger round over those in a small one: loops in C make no calls."""
    large, small = _fastest(lambda: _play_round(GROWN * PAIRS), lambda: _play_round(PAIRS))
    return large / GROWN / small


def step_time() -> float:
    """Seconds of an optimiser step, references scored in it, over those of a plain padded one."""
    pairs = WORKLOAD.batches(2)[1]
    learner = _learner()

    def ours() -> None:
        learner.references.clear()
        learner.step(pairs, 1.5)

    mine, plain = _fastest(ours, PlainStep(pairs))
    return mine / plain


COUNTED = (
    step_flops,
    step_operations,
    step_calls,
    buffer_calls,
    buffer_growth,
    records_calls,
    records_growth,
)
TIMED = (buffer_time_growth, step_time)


def _step() -> Callable[[], object]:
    """A step whose references are known, as in every pass over the pairs but the first."""
    learner = _learner()
    first, second = WORKLOAD.batches(2)
    learner.step(first, 1.5)  # makes the optimiser's state
    learner.score_references(second)
    return lambda: learner.step(second, 1.5)


def _learner() -> SelfPlayLearner:
    config = RunConfig.from_dict(
        {
            "model": {"path": "made-here", "dtype": "float32"},
            "data": {"path": "made-here", "max_prompt_tokens": 128, "max_response_tokens": 128},
            "learner": {"zero_stage": 0, "compile": False, "micro_batch_tokens": 8192},
        }
    )
    learner = SelfPlayLearner(build_model(WORKLOAD), config, torch.device("cpu"))
    learner.start_round(1, 10**6)
    return learner


def _fastest(one: Callable[[], object], other: Callable[[], object], repeats: int = 5) -> tuple[float, float]:
    """Least CPU seconds of both, which take turns."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for task, times in repeats * [(one, seconds[0]), (other, seconds[1])]:
        begin = time.process_time()
        task()
        times.append(time.process_time() - begin)
    return min(seconds[0]), min(seconds[1])


def _play_round(pairs: int) -> None:
    buffer = RoundBuffer(OPEN, np.arange(pairs), epochs=1, batch_size=BATCH, max_ahead=4 * BATCH, seed=0)
    for step in range(buffer.steps):
        while not buffer.is_ready(step):
            for position in buffer.lease("generator-0", BATCH):
                buffer.add("generator-0", position, StoredPair("chunk", position, 16, 0))
        buffer.share(step, 0, 1)
        buffer.staleness(step)
        buffer.commit(step)


def _records(iterations: int) -> int:
    """Calls for iterations of four steps, from a round's opening to its evaluation."""
    with TemporaryDirectory() as folder:
        config = {"run": {"folder": folder}, "model": {"path": "a"}, "data": {"path": "b"}}
        records = Records(RunFolder.create(RunConfig.from_dict(config)), Alpha())

        def play() -> None:
            for iteration in range(1, iterations + 1):
                records.round_opened(replace(OPEN, iteration=iteration), 4)
                for _ in range(4):
                    records.stepped(REPORT, [0] * BATCH, dict.fromkeys(PHASES, 0.1))
                records.status()
                records.round_written()
                records.round_closed(MEANS)
                records.evaluated(iteration, {"exact_match": 0.5})

        return calls(play)
