"""What the processes of a run wrote, as Ray keeps it on their nodes."""

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Thread
from typing import Any, Literal

import ray
from ray.util.state import get_log, list_actors
from ray.util.state.exception import RayStateApiException, ServerUnavailable

from actors import names
from iris_ray.errors import ConfigError, UnavailableError, first_line

MOST_ACTORS = 10_000  # Ray tells of no more at once
LEARNER_CLASSES = ("TrainController", "RayTrainWorker")  # Ray Train's own, and a rank each
MARKS = (":job_id:", ":actor_name:", ":task_name:")  # Ray's own lines
# Of a second cluster on a machine: its agent finds the port in use and goes without.
NO_AGENT = (
    "the agent of this Ray node does not answer; another Ray cluster on that machine may have its port, "
    "52365. The files are in the folder that cluster.json names."
)

Stream = Literal["out", "err"]
STREAMS: tuple[Stream, ...] = ("out", "err")


@dataclass(frozen=True)
class Process:
    """An actor of a run. All that Ray Train started is `learner`. `state` is Ray's, `node` an IP address.

    `pid` is 0 while it waits for resources.
    """

    role: str
    state: str
    pid: int
    node: str
    actor_id: str

    def lines(self, stream: Stream, tail: int, follow: bool = False) -> Iterator[str]:
        """The last `tail` lines of what it wrote, and if it is to `follow` those that come."""
        if not self.pid:
            return
        chunks: Any = get_log(
            ray.get_runtime_context().gcs_address,
            actor_id=self.actor_id,
            suffix=stream,
            tail=tail,
            follow=follow,
            encoding=None,
            filter_ansi_code=True,
        )
        rest = ""
        try:
            for text in codecs.iterdecode(chunks, "utf-8", errors="replace"):
                *lines, rest = (rest + text).split("\n")
                yield from (line for line in lines if not line.startswith(MARKS))
        except RayStateApiException as error:
            reason = first_line(error)
            if "Agent for node" in reason:
                reason = NO_AGENT
            yield f"(it cannot be read: {reason})"
        if rest:
            yield rest

    def wrote(self, tail: int) -> dict[Stream, list[str]]:
        """The last lines of both streams."""
        return {stream: list(self.lines(stream, tail)) for stream in STREAMS}


def processes(run: str, role: str | None = None) -> list[Process]:
    """Those of run `run` on the cluster that was joined, of one role or all, also those that ended.

    Raises `UnavailableError` if it knows none or cannot tell, `ConfigError` for a role that none has.
    """
    cluster = ray.get_runtime_context().gcs_address
    try:
        actors = list_actors(cluster, limit=MOST_ACTORS, raise_on_missing_output=False)
    except (ServerUnavailable, ConnectionError) as error:
        raise UnavailableError(
            f"the dashboard of the Ray cluster {cluster} does not answer, and logs come from there. Its head "
            "may have been started with --include-dashboard=false."
        ) from error
    addresses = {node["NodeID"]: node["NodeManagerAddress"] for node in ray.nodes()}
    own = [actor for actor in actors if (actor.name or "").startswith(f"{run}/")]
    jobs = {actor.job_id for actor in own}
    own += [actor for actor in actors if actor.class_name in LEARNER_CLASSES and actor.job_id in jobs]
    found = [
        Process(
            actor.name.removeprefix(f"{run}/") if actor.name else names.LEARNER,
            str(actor.state).lower().replace("_", " "),
            actor.pid or 0,
            addresses.get(actor.node_id, ""),
            actor.actor_id,
        )
        for actor in own
    ]
    if not found:
        raise UnavailableError(f"{run}: this Ray cluster knows no process of such a run.")
    roles = sorted({process.role for process in found})
    if role is not None and role not in roles:
        raise ConfigError(f"{role}: {run} has no such process. There: {', '.join(roles)}.")
    chosen = [process for process in found if role in (None, process.role)]
    return sorted(chosen, key=lambda process: (process.role, process.state == "alive", process.pid))


def follow(chosen: list[Process], tail: int) -> Iterator[tuple[Process, str]]:
    """The last lines of several processes and those that come, until the cluster is gone."""
    lines: SimpleQueue[tuple[Process, str] | None] = SimpleQueue()

    def pump(process: Process, stream: Stream) -> None:
        try:
            for line in process.lines(stream, tail, follow=True):
                lines.put((process, line))
        except OSError:
            pass  # the cluster is gone, or its node
        finally:
            lines.put(None)

    pumps = [(process, stream) for process in chosen for stream in STREAMS]
    for each in pumps:
        Thread(target=pump, args=each, daemon=True).start()
    for _ in pumps:
        while (item := lines.get()) is not None:
            yield item
