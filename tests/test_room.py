"""Whether a run fits on nodes, asked of a real Ray."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import ray
from conftest import made_model
from ray.cluster_utils import Cluster
from ray.util import get_placement_group, placement_group, remove_placement_group
from run_process import WAIT_S, free_ports, play

from actors import names, room
from actors.cluster import connect
from iris_ray.errors import ResourceError
from iris_ray.resources import GIB, Need


@pytest.fixture(scope="module")
def nodes(own_ray: None) -> Iterator[Cluster]:
    """Two nodes with a core each, one of them for generators."""
    head = {"num_cpus": 1, "memory": 4 * GIB, "include_dashboard": False}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        nodes.add_node(num_cpus=1, memory=4 * GIB, resources={"generators": 1}, labels={"tier": "spot"})
        connect(nodes.address)
        yield nodes
    finally:
        ray.shutdown()
        nodes.shutdown()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "GRACE_S", 0)


def generators(count: int, cpus: float = 0.5, **where: dict) -> Need:
    return Need("generator", count, cpus, 0, GIB, **where)


def refused(needed: list[Need]) -> str:
    with pytest.raises(ResourceError) as error:
        room.check_room(needed, 0, pytest.fail)
    return str(error.value)


@pytest.mark.parametrize(
    "need",
    [
        generators(4),
        generators(2, custom={"generators": 0.5}),
        generators(2, labels={"tier": "spot"}),
        generators(2, labels={"tier": "!spot"}),
    ],
)
def test_what_fits_is_reserved_and_given_back(nodes: Cluster, need: Need) -> None:
    room.check_room([need], 0, pytest.fail)
    deadline = time.monotonic() + WAIT_S
    while ray.available_resources().get("CPU") != 2:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    ("need", "message"),
    [
        (generators(5), "CPU: 2.5 needed, 2 free"),
        (generators(1, custom={"elves": 1}), "elves: 1 needed, 0 free"),
        (generators(3, custom={"generators": 0.5}), "generators: 1.5 needed, 1 free"),
        (generators(1, cpus=2), "enough in all, but not on nodes that can hold each process"),
        (
            generators(3, labels={"tier": "spot"}),
            "3 × generator with 0.5 CPU, 1.0 GiB memory on nodes with tier=spot",
        ),
    ],
)
def test_what_does_not_fit_is_refused(nodes: Cluster, need: Need, message: str) -> None:
    assert message in refused([need])


def test_a_run_waits_for_the_nodes_that_an_autoscaler_brings(nodes: Cluster) -> None:
    lacked = []

    def bring(lack: str) -> None:
        lacked.append(lack)
        nodes.add_node(num_cpus=1, memory=4 * GIB, resources={"late": 1})

    room.check_room([generators(1, custom={"late": 1})], WAIT_S, bring)
    assert lacked == ["late: 1 needed, 0 free"]


def test_nodes_that_do_not_come_are_not_waited_for_without_end(nodes: Cluster) -> None:
    with pytest.raises(ResourceError, match="elves: 1 needed, 0 free"):
        room.check_room([generators(1, custom={"elves": 1})], 1, lambda lack: None)


def test_a_run_that_waits_for_nodes_is_stopped_as_jobs_are(nodes: Cluster, tmp_path: Path) -> None:
    recipe = {
        "run": {"name": "waits", "ray_address": nodes.address, "wait_for_nodes": True},
        "model": made_model(warmup_steps=20),
        "data": {"sort_digits": {"examples": 64}, "holdout": 8},
        "generation": {"resources": {"elves": 1}},
    }
    run = play(recipe, tmp_path)
    try:
        run.wait_for(lambda: "elves: 1 needed, 0 free" in run.printed())
        run.process.terminate()
        assert run.process.wait(WAIT_S) == 130
    finally:
        run.kill()
    assert run.printed().splitlines()[-1] == "Stopped before anything was done."
    assert "SIGTERM" not in run.printed()
    assert not run.folder.exists()


CONNECT = "import ray; from actors.cluster import connect; connect(None); print(len(ray.nodes()), 'node')"


def test_a_cluster_that_ended_without_a_word_is_not_waited_for() -> None:
    with TemporaryDirectory(dir="/tmp") as temporary:  # short, for paths of sockets
        left = Path(temporary) / "ray" / "ray_current_cluster"
        left.parent.mkdir()
        left.write_text(f"127.0.0.1:{free_ports(1)[0]}")
        where = os.environ | {"RAY_TMPDIR": temporary}
        line = [sys.executable, "-c", CONNECT]
        done = subprocess.run(line, env=where, capture_output=True, text=True, timeout=WAIT_S, check=True)
    assert done.stdout.endswith("1 node\n")


ANOTHER = """
import ray
from ray.util.placement_group import placement_group
ray.init(address={address!r}, namespace={namespace!r}, log_to_driver=False)
ray.get(placement_group([{{"CPU": 0.1}}], name="another", lifetime="detached").ready())
"""


def test_what_this_job_reserved_is_found_and_given_back(nodes: Cluster) -> None:
    program = ANOTHER.format(address=nodes.address, namespace=names.NAMESPACE)
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    before = room.reserved()
    mine = placement_group([{"CPU": 0.1}])
    ray.get(mine.ready())
    assert room.reserved() - before == {mine.id.hex()}
    room.give_back(room.reserved() - before)
    assert room.reserved() == before
    remove_placement_group(get_placement_group("another"))  # of another job, it still stood
