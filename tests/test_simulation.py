"""The simulated service in cases whose outcome can be reckoned by hand."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import run_config

from iris_ray.config import RunConfig
from iris_ray.planning.engine_queue import EngineQueue, Request
from iris_ray.planning.hardware import CallSeconds, Hardware
from iris_ray.planning.model_shape import ModelShape
from iris_ray.planning.rates import EngineRates, LearnerRates, Speeds
from iris_ray.planning.server import Cores, Server
from iris_ray.planning.simulation import Costs, Simulation
from iris_ray.planning.weight_sync import SyncSeconds
from iris_ray.planning.workload import Workload

FREE = 1e30
PASSES = 4  # of a step whose opponent is scored by the learner
PROMPTS, LENGTH, BATCH = 640, 10, 32
SHAPE = ModelShape(
    parameters=100, trained=100, matrices=100, layers=1, hidden=1, intermediate=1, query_width=1, kv_width=1,
    vocab=1, largest_layer=1,
)  # fmt: skip
NO_CALLS = CallSeconds(**dict.fromkeys(CallSeconds.model_fields, 0.0))


def recipe(**sections) -> RunConfig:
    return run_config(
        **{
            "schedule": {"iterations": 2, "epochs": 1},
            "learner": {"batch_size": BATCH},
            "generation": {"concurrency": 16, "count": 1},
            "evaluation": {"prompts": 0},
        }
        | sections
    )


def costs(config: RunConfig, *, token_s: float, step_s: float, **changed) -> Costs:
    """A token of every response takes `token_s`, however many are written; a step of the learner `step_s`."""
    speeds = Speeds(FREE, step_s / PASSES, FREE, token_s, FREE, engine_request_s=0.0)
    hardware = Hardware(matrix_tflops=1, bandwidth_gb_s=1_000_000)
    plain = Costs(
        SHAPE,
        EngineRates(speeds, SHAPE, "float32", False),
        LearnerRates(speeds, SHAPE, config, hardware),
        SyncSeconds(0, 0, 0, 0),
        NO_CALLS,
    )
    return replace(plain, **changed)


def workload(written: np.ndarray | None = None) -> Workload:
    constant = np.full(PROMPTS, LENGTH)
    return Workload(PROMPTS, 0, constant, constant, constant if written is None else written)


def simulate(config: RunConfig, lengths: Workload | None = None, **given) -> dict:
    return Simulation(config, lengths or workload(), costs(config, **given)).run()


@pytest.mark.parametrize(("token_s", "step_s"), [(0.01, 0.02), (0.001, 0.5), (0.02, 0.4)])
def test_the_slower_side_sets_the_pace(token_s: float, step_s: float) -> None:
    config = recipe()
    found = simulate(config, token_s=token_s, step_s=step_s)
    writing, training = 16 / (LENGTH * token_s), BATCH / step_s
    # Filling the pipe: the first batch is written before the first step, the last step follows the last pair.
    expected = PROMPTS / (PROMPTS / min(writing, training) + BATCH / max(writing, training))
    assert found["pairs_per_s"] == pytest.approx(expected, rel=0.03)
    assert (found["learner_idle_share"] > 0.5) == (writing < training / 2)
    assert found["ledger"] == {"committed": 2 * PROMPTS, "lost": 0, "duplicated": 0}


def test_generators_share_nothing() -> None:
    found = {
        count: simulate(recipe(generation={"concurrency": 16, "count": count}), token_s=0.05, step_s=1e-4)
        for count in (1, 2, 4)
    }
    rates = [found[count]["pairs_per_s"] for count in (1, 2, 4)]
    assert rates == pytest.approx([32, 64, 128], rel=0.03)


def test_the_learner_bounds_how_far_generators_run_ahead() -> None:
    config = recipe(generation={"concurrency": 16, "count": 4, "max_ahead": 64})
    found = simulate(config, token_s=0.001, step_s=1.0)
    last = found["iterations"][-1]
    # The last pair is written when all but `max_ahead` are trained on.
    assert last["generation_seconds"] == pytest.approx(last["seconds"] - 64 / BATCH, abs=0.2)


def test_online_staleness_stays_within_its_bound() -> None:
    for bound in (0, 2):
        config = recipe(
            schedule={"iterations": 2, "epochs": 1, "refresh": 4, "max_staleness": bound},
            learner={"batch_size": BATCH, "reference": "generator"},
            generation={"concurrency": 16, "count": 3},
        )
        found = simulate(config, token_s=0.001, step_s=0.1)
        assert found["staleness_max"] == bound
        assert found["ledger"]["committed"] == 2 * PROMPTS


def test_deaths_return_leases_and_the_ledger_stays_exact() -> None:
    config = recipe(generation={"concurrency": 16, "count": 4, "max_failures": 100})
    found = simulate(config, token_s=0.05, step_s=0.01, failure_s=2.5, start_s=0.5)
    assert found["deaths"] > 5
    assert found["ledger"] == {"committed": 2 * PROMPTS, "lost": 0, "duplicated": 0}
    alive = simulate(config, token_s=0.05, step_s=0.01)
    assert found["pairs_per_s"] < alive["pairs_per_s"]


def test_a_slow_buffer_is_the_bottleneck_and_is_named() -> None:
    config = recipe(generation={"concurrency": 16, "count": 8})
    slow = CallSeconds(**NO_CALLS.model_dump() | {"add_pair": 0.05})
    found = simulate(config, token_s=0.001, step_s=0.001, calls=slow)
    assert found["pairs_per_s"] == pytest.approx(20, rel=0.05)
    assert found["busy_share"]["sample buffer"] > 0.95
    assert max(found["busy_share"], key=found["busy_share"].get) == "sample buffer"


def test_broadcast_weights_reach_all_and_hold_up_both_sides() -> None:
    config = recipe(sync={"transport": "gloo"}, generation={"concurrency": 16, "count": 3})
    sync = SyncSeconds(blocked=2.0, ready=0.0, still=2.0, probe=0.0)
    found = simulate(config, token_s=0.01, step_s=0.01, sync=sync)
    plain = simulate(config, token_s=0.01, step_s=0.01)
    assert found["ledger"]["committed"] == 2 * PROMPTS
    assert found["seconds"] > plain["seconds"] + 2 * 2.0


def test_evaluation_is_written_beside_the_round() -> None:
    evaluated = replace(workload(), holdout=320)
    config = recipe(evaluation={"prompts": 320})
    found = simulate(config, evaluated, token_s=0.05, step_s=0.001)
    plain = simulate(recipe(), token_s=0.05, step_s=0.001)
    assert found["pairs_per_s"] == pytest.approx(plain["pairs_per_s"] * 640 / 960, rel=0.05)


def test_autoscaling_follows_the_services_rule() -> None:
    scale = {"minimum": 1, "maximum": 6, "low": 2, "high": 8, "interval_s": 1}
    config = recipe(generation={"concurrency": 16, "count": 1, "autoscale": scale})
    simulation = Simulation(config, workload(), costs(config, token_s=0.1, step_s=0.01, start_s=0.1))
    simulation.run()
    assert simulation.wanted == 6


def test_the_same_recipe_simulates_the_same() -> None:
    lengths = workload(np.random.default_rng(0).integers(2, 40, PROMPTS))
    first, second = (simulate(recipe(), lengths, token_s=0.01, step_s=0.05) for _ in range(2))
    assert first == second


def test_a_queue_writes_each_response_to_its_end() -> None:
    rates = costs(recipe(), token_s=1.0, step_s=0).engine
    queue: EngineQueue[str] = EngineQueue(rates, concurrency=2)
    queue.admit([Request("a", 0, 3), Request("b", 0, 5), Request("c", 0, 4)])
    assert queue.advance(2.5, at_most=0) == (2.5, [])
    assert queue.advance(1.0, at_most=0) == (1.0, ["a"])
    seconds, finished = queue.advance(100.0, at_most=0)
    assert (seconds, finished) == (pytest.approx(3.5), ["b", "c"])
    assert (queue.in_flight, queue.tokens) == (0, 12)


def test_calls_wait_in_a_row_and_cores_are_shared() -> None:
    from simpy import Environment

    env = Environment()
    server = Server(env, "x")
    env.run(env.all_of([server.call(1.0) for _ in range(3)]))
    assert (env.now, server.utilisation) == (3.0, 1.0)
    cores = Cores(2)
    assert [cores.enter(1.0) for _ in range(4)] == [1, 1, 1.5, 2]
