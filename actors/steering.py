"""Looking at a run and steering it, from another process."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.util import list_named_actors

from actors import names
from actors.cluster import connect
from actors.run_status import run_status
from iris_ray.contracts import Order
from iris_ray.errors import ConfigError, NotObeyedError, RunFolderError, UnavailableError
from iris_ray.progress import live_status, run_state
from iris_ray.run_folder import RunFolder

TIMEOUT_S = 60


class LiveRun:
    """A run that is going on, by way of its actors."""

    def __init__(self, name: str):
        self.name = name
        try:
            self.controller = names.find(name, names.CONTROLLER)
            self.pool = names.find(name, names.GENERATOR_POOL)
        except ValueError:
            there = ", ".join(live_runs()) or "none"
            told = f"{name}: no such run plays on this Ray cluster. There: {there}."
            raise UnavailableError(told) from None

    def status(self) -> dict[str, Any]:
        """As `live_status`."""
        return live_status(self.name, run_status(self.name, TIMEOUT_S))

    def scale(self, count: int) -> None:
        """Have `count` generators. Returns at once: those that leave finish what they have."""
        ray.get(self.pool.scale.remote(count), timeout=TIMEOUT_S)

    def order(self, order: Order, timeout: float) -> dict[str, Any]:
        """Have the learner obey before its next step.

        Returns once it did, with the fields of the status that the controller knows. Raises `NotObeyedError`
        if it did not within `timeout` s; the order stands nevertheless.
        """
        ordered: Any = self.controller.order.remote(order)
        number = ray.get(ordered, timeout=TIMEOUT_S)
        try:
            obeyed: Any = self.controller.wait_obeyed.remote(number)
            status = ray.get(obeyed, timeout=timeout)
        except ray.exceptions.GetTimeoutError:
            raise NotObeyedError(
                f"{self.name}: the learner did not come to it within {timeout:g} s. It will, before its next "
                "step. `iris-ray status` tells what it does; --timeout waits longer."
            ) from None
        told = {key: status[key] for key in ("iteration", "step", "last_checkpoint")}
        return {"run": self.name, "state": run_state(status)} | told


@contextmanager
def live_run(run: str | Path, address: str | None = None) -> Iterator[LiveRun]:
    """The run in folder `run`, or of that name on the Ray cluster at `address` (by default that at hand).

    Raises `RunFolderError` if the run in the folder does not play, `ConfigError` if no cluster answers,
    `UnavailableError` if no such run plays on it.
    """
    folder = RunFolder(Path(run))
    if address is None and folder.cluster.exists():
        address = json.loads(folder.cluster.read_text())["address"]
        try:
            connect(address)
        except ConfigError as error:
            raise RunFolderError(
                f"{run}: the Ray cluster that it played on, {address}, does not answer: the run was killed. "
                f"To go on: iris-ray run --resume {run}"
            ) from error
    elif address is None and folder.config.exists():
        raise RunFolderError(f"{run}: this run does not play. To go on: iris-ray run --resume {run}")
    else:
        connect(address or "auto")
    try:
        yield LiveRun(folder.path.name)
    finally:
        ray.shutdown()


def live_runs() -> list[str]:
    """Names of the runs that play on the cluster."""
    role = f"/{names.CONTROLLER}"
    return sorted(
        actor["name"].removesuffix(role)
        for actor in list_named_actors(all_namespaces=True)
        if actor["namespace"] == names.NAMESPACE and actor["name"].endswith(role)
    )
