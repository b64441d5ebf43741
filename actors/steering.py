"""Looking at a run and steering it, from another process."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError
from ray.util import list_named_actors

from actors import names
from actors.cluster import connect
from actors.run_status import run_status
from actors.stored_pairs import fetch
from iris_ray.contracts import Order, SelfPlayPair
from iris_ray.errors import ConfigError, NotObeyedError, RunFolderError, UnavailableError
from iris_ray.progress import folder_status, live_status, run_state
from iris_ray.run_folder import RunFolder

TIMEOUT_S = 60


class LiveRun:
    """A run that is going on, by way of its actors; `UnavailableError` if they do not answer."""

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
        with self._answering():
            return live_status(self.name, run_status(self.name, TIMEOUT_S))

    def generators(self) -> list[dict[str, Any]]:
        """As in the status, asked of the pool alone."""
        with self._answering():
            asked: Any = self.pool.status.remote()
            return ray.get(asked, timeout=TIMEOUT_S)["generators"]

    def newest_pairs(self, count: int) -> list[SelfPlayPair]:
        """Those that were written last."""
        with self._answering():
            asked: Any = names.find(self.name, names.SAMPLE_BUFFER).newest.remote(count)
            return fetch(ray.get(asked, timeout=TIMEOUT_S), TIMEOUT_S)

    def scale(self, count: int) -> None:
        """Have `count` generators. Returns at once: those that leave finish what they have."""
        with self._answering():
            ray.get(self.pool.scale.remote(count), timeout=TIMEOUT_S)

    def order(self, order: Order, timeout: float) -> dict[str, Any]:
        """Have the learner obey before its next step.

        Returns once it did, with the fields of the status that the controller knows. Raises `NotObeyedError`
        if it did not within `timeout` s; the order stands nevertheless.
        """
        with self._answering():
            ordered: Any = self.controller.order.remote(order)
            number = ray.get(ordered, timeout=TIMEOUT_S)
            try:
                obeyed: Any = self.controller.wait_obeyed.remote(number)
                status = ray.get(obeyed, timeout=timeout)
            except GetTimeoutError:
                raise NotObeyedError(
                    f"{self.name}: the learner did not come to it within {timeout:g} s. It will, before its "
                    "next step. `iris-ray status` tells what it does; --timeout waits longer."
                ) from None
        told = {key: status[key] for key in ("iteration", "step", "last_checkpoint")}
        return {"run": self.name, "state": run_state(status)} | told

    @contextmanager
    def _answering(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, RayActorError) as error:
            told = f"{self.name}: the actors of this run are not all there: it is starting anew, or ending."
            raise UnavailableError(told) from error
        except GetTimeoutError as error:
            raise UnavailableError(f"{self.name}: its actors did not answer in {TIMEOUT_S} s.") from error


@contextmanager
def joined(run: str | Path, address: str | None = None) -> Iterator[None]:
    """Be on the Ray cluster at `address`: by default the one that the run's folder tells, or that at hand.

    Raises `RunFolderError` if none answers, `ConfigError` if it is the one at `address`.
    """
    folder = RunFolder(Path(run))
    where = {} if address else folder.read_where()
    try:
        connect(address or where.get("address") or "auto", "--address")
    except ConfigError as error:
        if address:
            raise
        if not folder.config.exists():
            told = (
                f"{folder.path.name}: there is no run of this name in {Path(run).parent}. 'iris-ray runs' "
                "lists those that are there. A run on another cluster needs --address."
            )
        elif not where:
            told = f"{run}: this run's folder tells of no Ray cluster, and none runs on this machine."
        else:
            told = f"{run}: the Ray cluster that it played on, {where['address']}, does not answer from here."
            if folder.cluster.exists():
                told += f" If the run is over: iris-ray run --resume {run}"
            if logs := where.get("logs"):
                told += f"\nIts logs may still lie in {logs} on its nodes."
        raise RunFolderError(told) from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def live_run(run: str | Path, address: str | None = None) -> Iterator[LiveRun]:
    """The run in folder `run`, or of that name on the Ray cluster at `address` (by default that at hand).

    Raises `RunFolderError` if the run in the folder does not play or no cluster answers, `ConfigError` if
    that at `address` does not, `UnavailableError` if no such run plays on it.
    """
    folder = RunFolder(Path(run))
    known = address is None and folder.config.exists()
    told = f"{run}: this run does not play. To go on: iris-ray run --resume {run}"
    if known and not folder.cluster.exists():
        raise RunFolderError(told)
    with joined(run, address):
        try:
            live = LiveRun(folder.path.name)
        except UnavailableError:
            if not known:
                raise
            if absent_status(folder)["state"] == "starting":
                told = f"{run}: this run is starting. Try again in a while."
            raise RunFolderError(told) from None
        yield live


def status_now(folder: RunFolder, known: bool) -> dict[str, Any]:
    """As `live_status`; of a run that has no actors there what its folder tells, if that is `known`."""
    try:
        return LiveRun(folder.path.name).status()
    except UnavailableError:
        if not known:
            raise
        return absent_status(folder)


def absent_status(folder: RunFolder) -> dict[str, Any]:
    """As `folder_status`, of a run that has no actors on the cluster that was joined."""
    told = folder_status(folder)
    if told["state"] == "playing":
        jobs = {job["JobID"] for job in ray._private.state.jobs() if not job["IsDead"]}
        told["state"] = "starting" if folder.read_where()["job"] in jobs else "interrupted"
    return told


def live_runs() -> list[str]:
    """Names of the runs that play on the cluster."""
    role = f"/{names.CONTROLLER}"
    return sorted(
        actor["name"].removesuffix(role)
        for actor in list_named_actors(all_namespaces=True)
        if actor["namespace"] == names.NAMESPACE and actor["name"].endswith(role)
    )
