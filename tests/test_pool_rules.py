"""The pool's rules: how many generators, and how often one is started again."""

import pytest
from conftest import run_config
from ray.train import WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from actors.failures import generator_failure, is_parity_error, user_error
from iris_ray.config import Autoscale
from iris_ray.errors import ConfigError, EngineError, ParityError, ResourceError, UpdateError
from iris_ray.generation.restarts import LONGEST_PAUSE_S, Restarts
from iris_ray.generation.scaling import autoscaled

MARKS = Autoscale(minimum=1, maximum=4, low=2, high=8)


@pytest.mark.parametrize(
    ("count", "ahead", "leasable", "wanted"),
    [
        (1, 0, 100, 2),  # the learner is about to wait
        (1, 0, 0, 1),  # and nothing is left to write
        (4, 0, 100, 4),
        (2, 128, 100, 2),  # at the low mark itself: enough
        (2, 512, 100, 2),  # at the high mark itself: not too much
        (2, 513, 100, 1),
        (1, 513, 100, 1),
        (7, 200, 100, 4),  # scaled by hand beyond the bounds
    ],
)
def test_the_buffer_is_kept_between_two_marks(count: int, ahead: int, leasable: int, wanted: int) -> None:
    assert autoscaled(MARKS, 64, count, ahead, leasable) == wanted


def test_pauses_between_restarts_grow_while_nothing_is_written() -> None:
    restarts = Restarts(max_failures=20)
    pauses = [restarts.died(n + 0.5, n + 1, written=0, reason="out of memory") for n in range(10)]
    assert pauses == [0, 1] + 8 * [LONGEST_PAUSE_S]
    assert restarts.died(10.5, 11, written=1, reason="out of memory") == 0


def test_too_many_deaths_in_a_row_end_the_run_and_say_why() -> None:
    restarts = Restarts(max_failures=2)
    for n, written in enumerate((0, 0, 5, 5, 9, 9)):
        restarts.died(n + 0.5, n + 1, written, "lost its node")
    with pytest.raises(ResourceError, match=r"max_failures=2.*no GPU left"):
        restarts.died(6.5, 7, 9, "no GPU left")


def test_generators_that_die_together_count_once() -> None:
    """A node with a hundred of them is lost, and again with those that took their places."""
    restarts = Restarts(max_failures=2)
    for n in range(2):
        for _ in range(100):
            restarts.died(started=10 * n, now=10 * n + 9, written=0, reason="lost its node")
    assert restarts.in_a_row == 2


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (EngineError("the engine died"), "the engine died"),
        (TimeoutError("waited 5 s"), "waited 5 s"),
        (UpdateError("bucket 3 of 7"), "bucket 3 of 7"),
        (ParityError("differs"), "differs"),
        (ExceptionGroup("tasks", [ExceptionGroup("inner", [EngineError("deep")])]), "deep"),
        (ConfigError("a bad setting"), None),
        (TypeError("a bug"), None),
    ],
)
def test_only_what_a_new_generator_may_mend_replaces_one(error: Exception, reason: str | None) -> None:
    assert generator_failure(error) == reason
    assert is_parity_error(error) == isinstance(error, ParityError)


@pytest.mark.parametrize(
    ("generation", "message"),
    [
        ({"num_gpus": 2}, "generation.num_gpus (2): an engine with generation.tensor_parallel=1 uses one"),
        ({"num_gpus": 1, "tensor_parallel": 2}, "must be generation.tensor_parallel (2)"),
        ({"num_gpus": 0.5, "gpu_memory_utilization": 0.9}, "Lower gpu_memory_utilization to 0.5"),
        ({"autoscale": {"minimum": 3, "maximum": 2}}, "maximum (2) must be at least minimum (3)"),
        ({"count": 5, "autoscale": {"maximum": 2}}, "generation.count (5) must lie between"),
        ({"autoscale": {"maximum": 2, "high": 32}}, "must be below generation.max_ahead (2048 pairs)"),
        ({"resources": {"generators": 0}}, "generation.resources.generators: 0 does not fit"),
    ],
)
def test_what_an_engine_cannot_do_is_refused(generation: dict, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        run_config(generation=generation)
    assert message in str(refused.value)


def test_a_mark_that_staleness_keeps_the_buffer_below_is_refused() -> None:
    def online(high: float) -> None:
        autoscale = {"maximum": 2, "low": 1, "high": high}
        schedule = {"refresh": 4, "max_staleness": 1, "epochs": 1}
        run_config(generation={"autoscale": autoscale}, schedule=schedule, learner={"reference": "generator"})

    online(high=7)
    with pytest.raises(ConfigError, match=r"autoscale\.high \(8 batches\) must be below 8"):
        online(high=8)


def test_a_user_s_error_is_found_in_what_ray_train_makes_of_it() -> None:
    error = ConfigError("a bad setting")
    raised = WorkerGroupError("1 rank failed", {0: UserExceptionWithTraceback(error, "its traceback")})
    assert user_error(raised) is error


def test_a_gpu_can_be_shared_where_vllm_is_told_so() -> None:
    assert run_config(generation={"num_gpus": 0.5, "gpu_memory_utilization": 0.45}).generation.num_gpus == 0.5
    run_config(generation={"num_gpus": 4, "tensor_parallel": 4})
