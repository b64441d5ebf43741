"""The Ray cluster that a run plays on."""

import logging
import socket
from typing import Self

import ray

from actors import names
from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.resources import check_resources, needs

CONNECT_TIMEOUT_S = 10


class Cluster:
    """A connection to the Ray cluster at hand, or a local cluster for this run alone.

    Raises `ConfigError` if no cluster answers or the run's name is in use, `ResourceError` if a run of a
    model with `parameters` parameters does not fit.
    """

    def __init__(self, config: RunConfig, parameters: int):
        self.joined = not ray.is_initialized()
        self.dashboard_url: str | None = None
        if self.joined:
            self.dashboard_url = connect(config.run.ray_address)
        self.address: str = ray.get_runtime_context().gcs_address
        try:
            _check_name(config.run.name)
            check_resources(needs(config, parameters), ray.available_resources())
            if config.gateway.port:
                from actors.gateway import check_gateway  # Ray Serve takes a while to import

                check_gateway(config)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the cluster; one that was started here ends."""
        if self.joined:
            ray.shutdown()


def connect(address: str | None) -> str | None:
    """Join the cluster at `address`, or start a local one for `None`; returns the dashboard's URL.

    Raises `ConfigError` if no cluster answers.
    """
    if address and ":" in address:
        _check_reachable(address)
    try:
        context = ray.init(
            address=address, namespace=names.NAMESPACE, log_to_driver=False, logging_level=logging.ERROR
        )
    except ConnectionError as error:
        raise _no_cluster(address, error) from error
    return f"http://{context.dashboard_url}" if context.dashboard_url else None


def _check_reachable(address: str) -> None:
    # Ray itself would go on trying for many minutes.
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except (OSError, ValueError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str | None, error: Exception) -> ConfigError:
    return ConfigError(
        f"run.ray_address={address}: no Ray cluster answers there ({error}). Start one with "
        "'ray start --head', or leave the setting empty for a local cluster."
    )


def _check_name(run: str) -> None:
    taken = {actor["name"] for actor in ray.util.list_named_actors(all_namespaces=True)}
    if f"{run}/{names.CONTROLLER}" in taken:
        raise ConfigError(
            f"run.name={run}: a run of this name is going on in this cluster. Choose another run.name."
        )
