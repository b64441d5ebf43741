"""The Ray cluster that a run plays on."""

import logging
import os
from collections.abc import Callable
from typing import Any, Self

import ray
from ray._private.services import find_bootstrap_address

from actors import names
from actors.room import check_room
from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.interrupt import sigterm_kept
from iris_ray.reachable import knock
from iris_ray.resources import needs

CONNECT_TIMEOUT_S = 10


class Cluster:
    """A connection to the Ray cluster at hand, or a local cluster for this run alone.

    Raises `ConfigError` if no cluster answers or the run's name is in use, `ResourceError` if a run of a
    model with `parameters` parameters does not fit. `waiting` is told which nodes are waited for. `where`
    says where the run plays: what stands in its cluster.json.
    """

    def __init__(self, config: RunConfig, parameters: int, waiting: Callable[[str], None]):
        self.joined = not ray.is_initialized()
        dashboard = connect(config.run.ray_address) if self.joined else None
        context = ray.get_runtime_context()
        # Ray has no public way to tell this node's folder of logs, and it may lie anywhere.
        node: Any = ray._private.worker._global_node
        self.where: dict[str, str | None] = {
            "address": context.gcs_address,
            "dashboard": dashboard,
            "job": context.get_job_id(),
            "logs": node.get_logs_dir_path(),
        }
        try:
            _check_name(config.run.name)
            if config.gateway.port:
                from actors.gateway import check_gateway  # Ray Serve takes a while to import

                check_gateway(config)
            wait_s = config.run.start_timeout_s if config.run.wait_for_nodes else 0
            check_room(needs(config, parameters), wait_s, waiting)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the cluster; one that was started here ends."""
        if self.joined:
            ray.shutdown()


def connect(address: str | None, told_by: str = "run.ray_address") -> str | None:
    """Join the cluster at `address`, or start a local one for `None`; returns the dashboard's URL.

    Raises `ConfigError` if no cluster answers; it names the setting or option that told the address.
    """
    told = f"{told_by}={address}"
    if address in (None, "auto") and (elsewhere := os.environ.get("RAY_ADDRESS")):  # as Ray itself does
        address, told = elsewhere, f"RAY_ADDRESS={elsewhere}"
    if address and "://" in address:
        # Ray's client has no node of its own, and runs ask theirs for the folder of logs.
        raise ConfigError(
            f"{told}: neither Ray's client nor a dashboard will do. Name the head as HOST:PORT, such as "
            "10.0.0.1:6379, from one of the cluster's nodes; or have the cluster play the run: "
            "iris-ray submit RECIPE --address http://HOST:8265"
        )
    if address and ":" in address:
        _check_reachable(address, told)
    elif address is None and _is_gone(find_bootstrap_address(None)):
        address = "local"
    try:
        with sigterm_kept():
            context = ray.init(
                address=address, namespace=names.NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
            )
    except ConnectionError as error:
        raise _no_cluster(told, error) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _is_gone(address: str | None) -> bool:
    """Whether the last cluster of this machine, whose address Ray remembers, ended without telling it."""
    if address is None:
        return False
    try:
        knock(address, CONNECT_TIMEOUT_S)
    except OSError:
        return True
    return False


def _check_reachable(address: str, told: str) -> None:
    # Ray itself would go on trying for many minutes.
    try:
        knock(address, CONNECT_TIMEOUT_S)
    except (OSError, ValueError) as error:
        raise _no_cluster(told, error) from error


def _no_cluster(told: str, error: Exception) -> ConfigError:
    if "InvalidAuthToken" in str(error.__cause__):
        return ConfigError(
            f"{told}: the Ray cluster there wants its token. Copy what "
            "'ray get-auth-token' prints on its head node into ~/.ray/auth_token."
        )
    return ConfigError(
        f"{told}: no Ray cluster answers there ({error}). Name the head of one as HOST:PORT, or start one "
        "with 'ray start --head'. With run.ray_address and RAY_ADDRESS empty a run joins the cluster of its "
        "machine, or starts a local one."
    )


def _check_name(run: str) -> None:
    taken = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    if f"{run}/{names.CONTROLLER}" in taken:
        raise ConfigError(
            f"run.name={run}: a run of this name is going on in this cluster. Choose another run.name."
        )
