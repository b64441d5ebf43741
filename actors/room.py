"""Whether a cluster has room for a run: Ray reserves it, and gets it back at once."""

import time
from collections.abc import Callable, Iterable

import ray
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group

from iris_ray.errors import ResourceError
from iris_ray.resources import Need, missing

GRACE_S = 3  # in which a run that just ended gives back what it had
POLL_S = 1  # Ctrl-C is heard in between


def check_room(needed: list[Need], wait_s: float, waiting: Callable[[str], None]) -> None:
    """Raise `ResourceError` unless the nodes can hold all processes of `needed` at the same time.

    With `wait_s` nodes may come within so many seconds: an autoscaler sees the reservation. `waiting` is told
    what they should bring.
    """
    if not wait_s and missing(needed, ray.cluster_resources()):
        raise ResourceError(_refusal(needed))
    processes = [need for need in needed for _ in range(need.count)]
    room = placement_group(
        [need.resources for need in processes],
        bundle_label_selector=[dict(need.labels) for need in processes],
    )
    begin, told = time.monotonic(), False
    try:
        while not room.wait(POLL_S):
            waited = time.monotonic() - begin
            if waited > max(wait_s, GRACE_S):
                raise ResourceError(_refusal(needed))
            if waited > GRACE_S and not told:
                waiting(_lack(needed))
                told = True
    finally:
        remove_placement_group(room)


def reserved() -> set[str]:
    """Ids of all reservations (placement groups) that this job made and that stand."""
    job = ray.get_runtime_context().get_job_id()
    # Ray's public table does not tell whose they are.
    accessor = ray._private.state.state._connect_and_get_accessor()
    groups = map(PlacementGroupTableData.FromString, accessor.get_placement_group_table())
    return {
        group.placement_group_id.hex()
        for group in groups
        if group.creator_job_id.hex() == job and group.state != PlacementGroupTableData.REMOVED
    }


def give_back(groups: Iterable[str]) -> None:
    for group in groups:
        remove_placement_group(PlacementGroup(ray.PlacementGroupID.from_hex(group)))


def _lack(needed: list[Need]) -> str:
    lines = missing(needed, ray.available_resources())
    return "\n".join(lines) or "enough in all, but not on nodes that can hold each process"


def _refusal(needed: list[Need]) -> str:
    return (
        f"the Ray cluster cannot hold this run:\n{_lack(needed)}\n"
        f"It asks for {'; '.join(map(str, needed))}. Lower generation.count, generation.num_cpus, "
        "learner.workers or learner.num_cpus, or add nodes. If an autoscaler brings them, set "
        "run.wait_for_nodes=true."
    )
