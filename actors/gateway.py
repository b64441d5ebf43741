"""The gateway: a run's HTTP application on Ray Serve."""

import asyncio
import logging
import os
import secrets
import socket
from collections import Counter
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import ray
from fastapi import FastAPI
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import RayServeException
from starlette.types import Message
from transformers import AutoTokenizer

from actors import names
from actors.steering import LiveRun
from iris_ray.config import RunConfig
from iris_ray.contracts import Order
from iris_ray.errors import ConfigError, IrisRayError, UnavailableError, first_line
from iris_ray.gateway.app import gateway_app
from iris_ray.gateway.recent import Recent
from iris_ray.generation.stop_tokens import single_tokens
from iris_ray.run_folder import RunFolder
from iris_ray.samples import texts

TOKEN_VARIABLE = "IRIS_RAY_TOKEN"
FRESH_S = 1.0  # age of the list of generators that requests are sent to
LEAVE_TIMEOUT_S = 2
QUIET = {"log_level": "WARNING", "enable_access_log": False}
VISITORS = 200  # requests at the same time, of whatever kind


class RunOnCluster:
    """The run by way of its actors, looked up each time: they may have been started anew."""

    def __init__(self, run: str, tokenizer: Any):
        self.run = run
        self.tokenizer = tokenizer
        self.generators = Recent(lambda: LiveRun(run).generators(), FRESH_S)
        self.answering: Counter[str] = Counter()

    def status(self) -> dict[str, Any]:
        return LiveRun(self.run).status()

    def scale(self, count: int) -> None:
        LiveRun(self.run).scale(count)

    def order(self, order: Order, timeout: float) -> dict[str, Any]:
        return LiveRun(self.run).order(order, timeout)

    def newest_pairs(self, count: int) -> list[dict[str, Any]]:
        return [
            {"iteration": pair.iteration, "version": pair.version} | texts(pair, self.tokenizer)
            for pair in LiveRun(self.run).newest_pairs(count)
        ]

    async def respond(
        self, method: str, path: str, body: dict[str, Any] | None
    ) -> AsyncGenerator[Message, None]:
        name, generator = await asyncio.to_thread(self._choose)
        messages = generator.respond.options(num_returns="streaming").remote(method, path, body)
        self.answering[name] += 1
        try:
            async for message in messages:
                yield await message
        except (RayActorError, IrisRayError) as error:  # it died, or has failed and is about to be replaced
            raise UnavailableError(f"{name}, which was answering, is gone. Ask again.") from error
        finally:
            self.answering[name] -= 1
            ray.cancel(messages)

    def _choose(self) -> tuple[str, Any]:
        """Of the generators with the newest weights the one that answers least."""
        ready = [one for one in self.generators() if one["state"] == "ready" and one["version"] is not None]
        if not ready:
            raise UnavailableError(f"{self.run}: no generator is ready to answer yet.")
        newest = max(one["version"] for one in ready)
        candidates = [one["name"] for one in ready if one["version"] == newest]
        name = min(candidates, key=self.answering.__getitem__)
        try:
            return name, names.find(self.run, name)
        except ValueError as error:
            raise UnavailableError(f"{name} has just gone. Ask again.") from error


@serve.ingress()
class Gateway:
    """One replica beside the driver, where the run folder is at hand."""

    def __init__(self, config: RunConfig):
        self.config = config
        self.folder = RunFolder(config.folder)
        self.tokenizer = AutoTokenizer.from_pretrained(
            self.folder.tokenizer, trust_remote_code=config.model.trust_remote_code
        )

    def __serve_build_asgi_app__(self) -> FastAPI:
        ends = [self.tokenizer.eos_token_id, *single_tokens(self.config.generation.stop, self.tokenizer)]
        run = RunOnCluster(self.config.run.name, self.tokenizer)
        return gateway_app(run, self.config, self.folder.token.read_text().strip(), ends)


def check_gateway(config: RunConfig) -> None:
    """Raise `ConfigError` if the gateway's address is taken by somebody else."""
    host, port = config.gateway.host, config.gateway.port
    assert port
    try:
        with socket.create_connection((host, port), timeout=1):
            answered = True
    except OSError:
        answered = False
    serving = bool(serve.status().proxies)
    if serving and not answered:
        raise ConfigError(
            f"gateway.port={port}: Ray Serve runs on this cluster already and listens somewhere else than "
            f"{host}:{port}; it has one address for all. Set gateway.host and gateway.port to it, or end it "
            "with 'serve shutdown'."
        )
    if answered and not serving:
        raise ConfigError(
            f"gateway.port={port}: something else listens on {host}:{port}. Choose another port."
        )


@contextmanager
def gateway(config: RunConfig) -> Iterator[str | None]:
    """Serve the run over HTTP while the block runs; yields its URL, or `None` without `gateway.port`."""
    if not config.gateway.port:
        yield None
        return
    folder = RunFolder(config.folder)
    if token := os.environ.get(TOKEN_VARIABLE):
        folder.write_token(token)
    elif not folder.token.exists():
        folder.write_token(secrets.token_urlsafe(24))
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    settings = config.gateway
    serve.start("HeadOnly", {"host": settings.host, "port": settings.port}, logging_config=QUIET)
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    deployment: Any = serve.deployment(
        name="gateway",
        ray_actor_options={"num_cpus": 0, "label_selector": here},
        max_ongoing_requests=VISITORS,
        graceful_shutdown_timeout_s=LEAVE_TIMEOUT_S,
        graceful_shutdown_wait_loop_s=LEAVE_TIMEOUT_S,
        logging_config=QUIET,
    )(Gateway)
    name = f"iris-ray-{config.run.name}"
    try:
        serve.run(deployment.bind(config), name=name, route_prefix=settings.prefix)
    except RayServeException as error:
        cause = first_line(getattr(error, "cause", error))
        raise ConfigError(f"gateway.prefix={settings.prefix}: {cause} Choose another prefix.") from error
    try:
        yield f"http://{settings.host}:{settings.port}{settings.prefix}"
    finally:
        serve.delete(name)  # Serve itself stays for other runs, or ends with the cluster
