"""What a learner holds of its model, beside DeepSpeed's own estimators; sizes on the meta device."""

from pathlib import Path

import numpy as np
import pytest
from conftest import run_config
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from benchmarks.learner.curves import Point, load
from iris_ray.config import RunConfig
from iris_ray.memory import activation_bytes, checkpoint_bytes, model_states, opponent_bytes
from iris_ray.planning.footprint import TEMPORARIES, learner_footprint
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import ModelShape
from iris_ray.planning.workload import Workload
from iris_ray.resources import GIB

PARAMETERS, LAYER = 7_000_000_000, 200_000_000

MEASURED = load(Path(__file__).parents[1] / "docs" / "learner-performance" / "curves.csv")


def recipe(dtype: str = "bfloat16", **learner) -> RunConfig:
    return run_config(model={"path": "a", "dtype": dtype}, learner=learner)


@pytest.mark.parametrize("ranks", [1, 8, 64])
def test_zero_2_is_as_deepspeed_estimates(ranks: int) -> None:
    states = model_states(recipe(zero_stage=2), PARAMETERS, PARAMETERS, ranks)
    _, gpu = estimate_zero2_model_states_mem_needs(PARAMETERS, ranks, 1, cpu_offload=False)
    assert states.on_device == pytest.approx(gpu)


def test_zero_2_with_its_optimiser_in_host_memory_is_as_deepspeed_estimates() -> None:
    states = model_states(recipe(zero_stage=2, offload="optimizer"), PARAMETERS, PARAMETERS, 4)
    cpu, gpu = estimate_zero2_model_states_mem_needs(
        PARAMETERS, 4, 1, cpu_offload=True, additional_buffer_factor=1
    )
    assert states.on_device == pytest.approx(gpu)
    assert 4 * states.offloaded == pytest.approx(cpu)


@pytest.mark.parametrize("offload", ["none", "optimizer", "parameters"])
@pytest.mark.parametrize(("gpus", "nodes"), [(8, 1), (8, 4)])
def test_zero_3_is_as_deepspeed_estimates(offload: str, gpus: int, nodes: int) -> None:
    states = model_states(recipe(zero_stage=3, offload=offload), PARAMETERS, PARAMETERS, gpus * nodes, LAYER)
    cpu, gpu, _ = estimate_zero3_model_states_mem_needs(
        PARAMETERS,
        LAYER,
        gpus,
        nodes,
        cpu_offload=offload != "none",
        cpu_offload_params=offload == "parameters",
        additional_buffer_factor=1,
    )
    assert states.on_device == pytest.approx(gpu)
    if offload != "none":
        assert gpus * states.offloaded == pytest.approx(cpu)


def test_float32_without_zero_needs_no_master_weights() -> None:
    states = model_states(recipe("float32", zero_stage=0), 10, 10, 1)
    assert (states.weights, states.gradients, states.optimizer) == (40, 40, 80)
    assert model_states(recipe("float32", zero_stage=0, optimizer="rmsprop"), 10, 10, 1).optimizer == 40


def test_zero_splits_one_thing_more_with_each_stage() -> None:
    split = {
        stage: [
            getattr(model_states(recipe(zero_stage=stage), 10, 10, 10), part)
            / getattr(model_states(recipe(zero_stage=stage), 10, 10, 1), part)
            for part in ("optimizer", "gradients", "weights")
        ]
        for stage in range(4)
    }
    assert split == {0: [1, 1, 1], 1: [0.1, 1, 1], 2: [0.1, 0.1, 1], 3: [0.1, 0.1, 0.1]}


def test_the_opponent_is_split_with_the_policy_and_not_there_if_the_generators_score() -> None:
    assert opponent_bytes(recipe(), 10, 10, 2) == 20
    assert opponent_bytes(recipe(zero_stage=3), 10, 10, 2) == 10
    assert opponent_bytes(recipe(reference="generator"), 10, 10, 2) == 0


def test_a_checkpoint_holds_master_weights_and_moments_and_within_a_round_the_opponent() -> None:
    assert checkpoint_bytes(recipe(), 10, 10, within_round=False) == 120
    assert checkpoint_bytes(recipe(), 10, 10, within_round=True) == 140


def test_parts_add_up_to_what_learners_took() -> None:
    """Of those whose peak is not mostly libraries; peaks are without imports."""
    compared = 0
    for row in MEASURED:
        peak = float(row["peak_memory_mib_ours"]) - float(row["imported_memory_mib_ours"])
        if row["dtype"] != "bf16" or peak < 600:
            continue
        work = Point(row["curve"], int(row["value"])).workload
        parameters, kv_width = work.parameters, work.hidden // work.heads * work.kv_heads
        shape = ModelShape(
            parameters, parameters, 0, work.layers, work.hidden, work.intermediate, work.hidden, kv_width,
            work.vocab, 0,
        )  # fmt: skip
        config, responses = recipe(zero_stage=0, compile=True), 2 * work.pairs * work.response_tokens
        tokens = work.pairs * work.prompt_tokens + responses
        parts = model_states(config, parameters, parameters, 1).on_device
        parts += opponent_bytes(config, parameters, parameters, 1)
        parts += activation_bytes(config, shape, tokens, responses)
        assert (1 + TEMPORARIES) * parts / (1 << 20) == pytest.approx(peak, rel=0.2), row["curve"]
        compared += 1
    assert compared >= 4


def test_no_gpu_has_to_hold_the_whole_model_that_zero_3_splits() -> None:
    shape = ModelShape(PARAMETERS, PARAMETERS, 0, 32, 4096, 16384, 4096, 4096, 32000, LAYER)
    hardware = Hardware(gpus_per_node=8, gpu_memory_gib=80, matrix_tflops=900, bandwidth_gb_s=3000)
    lengths = np.array([100])
    workload = Workload(1000, 0, lengths, lengths, lengths)

    def beside_passes(**learner) -> float:
        config = recipe(num_gpus=1, micro_batch_tokens=300, batch_size=64, **learner)
        parts = learner_footprint(config, hardware, shape, workload).parts
        return sum(size for name, size in parts.items() if name not in ("libraries", "activations"))

    whole = 2 * PARAMETERS / GIB  # in bfloat16
    assert beside_passes(zero_stage=2, workers=64) > 2 * whole
    # Weights, opponent, gradients, master weights and moments, and two layers.
    assert beside_passes(zero_stage=3, workers=64) == pytest.approx(10 * whole / 64 + 4 * LAYER / GIB)
    assert beside_passes(zero_stage=3, workers=64, offload="parameters") == pytest.approx(4 * LAYER / GIB)
