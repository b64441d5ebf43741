"""What a run asks of a cluster, and what of it is not there; test_room asks a real one."""

import pytest
from conftest import run_config

from iris_ray.resources import GIB, Need, generator_memory, learner_memory, missing, needs

NEEDED = [
    Need("generator", 2, cpus=0.5, gpus=1, memory=3 * GIB, custom={"generators": 1}),
    Need("learner", 1, cpus=2, gpus=0, memory=4 * GIB, labels={"tier": "spot"}),
]
ENOUGH = {"CPU": 3.0, "GPU": 2.0, "memory": 10.0 * GIB, "generators": 2.0}
MILLION = 10**6


def test_needs_follow_the_configuration():
    config = run_config(
        generation={"count": 3, "num_cpus": 0.25, "resources": {"generators": 1}},
        learner={"workers": 2, "num_cpus": 4, "num_gpus": 1, "labels": {"tier": "spot"}},
    )
    generator, learner = needs(config, MILLION)
    assert (generator.role, generator.count, generator.cpus, generator.gpus) == ("generator", 3, 0.25, 0)
    assert (learner.role, learner.count, learner.cpus, learner.gpus) == ("learner", 2, 4, 1)
    assert (generator.custom, learner.labels) == ({"generators": 1}, {"tier": "spot"})
    assert generator.memory == generator_memory(config, MILLION)
    assert learner.memory == learner_memory(config, MILLION)


@pytest.mark.parametrize(("dtype", "width"), [("float32", 4), ("bfloat16", 2)])
def test_memory_grows_with_the_parameters(dtype, width):
    config = run_config(model={"path": "a", "dtype": dtype})
    generator = generator_memory(config, 500 * MILLION) - generator_memory(config, 0)
    learner = learner_memory(config, 500 * MILLION) - learner_memory(config, 0)
    assert generator == 2 * width * 500 * MILLION
    on_its_way = 2 if dtype == "bfloat16" else 0  # a gradient, before it is added up in float32
    assert learner == (3 * width + 16 + on_its_way) * 500 * MILLION


def test_on_gpus_neither_cache_nor_optimiser_lies_in_host_memory():
    cpu = run_config(generation={"kv_cache_gib": 5})
    gpu = run_config(generation={"kv_cache_gib": 5, "num_gpus": 1}, learner={"num_gpus": 1})
    assert generator_memory(cpu, MILLION) - generator_memory(gpu, MILLION) == 5 * GIB
    assert learner_memory(cpu, MILLION) - learner_memory(gpu, MILLION) == 16 * MILLION


def test_just_enough_is_enough():
    assert missing(NEEDED, ENOUGH) == []


@pytest.mark.parametrize(
    ("name", "free", "line"),
    [
        ("CPU", 2.5, "CPU: 3 needed, 2.5 free"),
        ("GPU", 1.0, "GPU: 2 needed, 1 free"),
        ("memory", 8.0 * GIB, "memory: 10.0 GiB needed, 8.0 GiB free"),
        ("generators", 1.0, "generators: 2 needed, 1 free"),
    ],
)
def test_what_is_short_is_named_with_needed_and_free(name, free, line):
    assert missing(NEEDED, ENOUGH | {name: free}) == [line]


def test_a_resource_the_cluster_does_not_know_is_not_there():
    there = {name: amount for name, amount in ENOUGH.items() if name != "GPU"}
    assert missing(NEEDED, there) == ["GPU: 2 needed, 0 free"]


def test_a_need_says_all_that_it_asks_for():
    generator, learner = NEEDED
    assert str(generator) == "2 × generator with 0.5 CPU, 1 GPU, 3.0 GiB memory, 1 generators"
    assert str(learner) == "1 × learner with 2 CPU, 4.0 GiB memory on nodes with tier=spot"
