"""Weights reach a node once, whatever number of generators pulls them there: real Ray, two nodes."""

from collections.abc import Iterator
from typing import Any

import pytest
import ray
import torch
from ray._private.internal_api import node_stats
from ray.cluster_utils import Cluster
from run_process import WAIT_S

from actors.cluster import connect
from actors.weight_publishing import put_buckets
from actors.weight_updates import WeightUpdates
from iris_ray.config import RunConfig
from iris_ray.weights.manifest import Probe, WeightManifest

GENERATORS = 3
SHAPE, LAYERS = (512, 512), 8
WEIGHTS = 4 * LAYERS * SHAPE[0] * SHAPE[1]  # bytes
CONFIG = RunConfig.from_dict({"model": {"path": "unused"}, "data": {"path": "unused"}})


@pytest.fixture(scope="module")
def nodes(own_ray: None) -> Iterator[Cluster]:
    """The learner's node and the generators'."""
    head = {"num_cpus": 1, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1, resources={"generators": GENERATORS})
        connect(nodes.address)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@ray.remote(num_cpus=0, resources={"generators": 1})
class Puller:
    """Pulls as a generator does, and has no engine to load what it gets."""

    def __init__(self, name: str):
        unused: Any = None
        self.updates = WeightUpdates(CONFIG, unused, name, unused)

    async def pull(self, manifest: WeightManifest) -> int:
        """How many bytes it got."""
        fetched = [await self.updates._fetch(manifest, index) for index in range(len(manifest.buckets))]
        return sum(array.nbytes for arrays in fetched for array in arrays)


def brought() -> int:
    """Bytes that were ever put into the object store of the generators' node."""
    (node,) = [each for each in ray.nodes() if "generators" in each["Resources"]]
    stats = node_stats(node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False)
    return stats.store_stats.cumulative_created_bytes


def test_weights_are_brought_to_a_node_once(nodes: Cluster) -> None:
    pullers = [Puller.remote(f"generator-{index}") for index in range(GENERATORS)]
    ray.get([puller.__ray_ready__.remote() for puller in pullers], timeout=WAIT_S)
    before = brought()
    weights = [(f"layer.{layer}", torch.randn(SHAPE)) for layer in range(LAYERS)]
    manifest = WeightManifest(0, put_buckets(weights, WEIGHTS // 4), Probe([], []))
    pulled = ray.get([puller.pull.remote(manifest) for puller in pullers], timeout=WAIT_S)
    assert pulled == [WEIGHTS] * GENERATORS
    assert WEIGHTS <= brought() - before < 1.1 * WEIGHTS
