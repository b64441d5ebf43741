"""The conductor of a run: builds its actors, watches over them, ends them."""

import threading
import time
from contextlib import suppress
from typing import Any

import ray
from ray.actor import ActorHandle

from actors import names
from actors.controller import Controller
from actors.failures import user_error
from actors.generator_pool import GeneratorPool
from actors.learner import start_learner
from actors.remote_code import with_its_code
from actors.room import give_back, reserved
from actors.run_metrics import RunMetrics
from actors.run_status import run_status
from actors.sample_buffer import SampleBuffer
from actors.weight_store import WeightStore
from iris_ray.config import RunConfig
from iris_ray.errors import LostActorError, ResourceError, RunStopped, first_line
from iris_ray.interrupt import Interrupts
from iris_ray.plugins import configured_objective
from iris_ray.preparation import Prepared
from iris_ray.view import View
from iris_ray.weights.manifest import Probe

POLL_S = 0.5
STATUS_TIMEOUT_S = 120  # while they start, actors answer late
STOP_TIMEOUT_S = 20
ENDING_S = 2


class Service:
    """All actors of one run."""

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        model_path: str,
        metrics: RunMetrics,
        resume_from: str | None = None,
    ):
        """`resume_from`: path in the storage of the checkpoint to go on from."""
        self.config = config
        self.metrics = metrics
        run = config.run.name
        self.began = time.monotonic()
        self.stopping: ray.ObjectRef | None = None
        self.reserved_before = reserved()
        # What holds the run's state stays beside the driver, with which it ends anyhow. Ray would put actors
        # that ask for nothing on any node, also on a generators' node that is scaled down or lost.
        here: dict[str, Any] = {"label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
        objective = configured_objective(config)
        first = "initial" in objective.responses
        self.buffer = names.start(SampleBuffer, run, names.SAMPLE_BUFFER, config, first, **here)
        self.store = names.start(WeightStore, run, names.WEIGHT_STORE, **here)
        # Handed over: to load it anew, the controller would have to import all of transformers and torch.
        tokenizer = with_its_code(prepared.tokenizer)
        self.controller = names.start(
            Controller, run, names.CONTROLLER, config, model_path, tokenizer, objective.has_order, **here
        )
        self.pool = names.start(
            GeneratorPool,
            run,
            names.GENERATOR_POOL,
            config,
            model_path,
            prepared.end_token_id,
            prepared.parameters,
            **here,
        )
        self.generators: Any = self.pool.run.remote()
        self.learner: ray.ObjectRef = start_learner(
            config, model_path, prepared.parameters, resume_from, **here
        )

    def play(self, view: View, interrupts: Interrupts) -> None:
        """Play the whole game; raises the error of the part that fails first.

        `KeyboardInterrupt` once `interrupts.at_once` is set.
        `RunStopped` if somebody asked for it, also by `interrupts.at_checkpoint`.
        `LostActorError` if an actor died or hangs that holds state of the run: only a checkpoint brings it
        back.
        """
        try:
            self._watch(view, interrupts)
            if self.status(STATUS_TIMEOUT_S)["stopped"]:
                raise RunStopped
        except ray.exceptions.RayError as error:
            self._check_parts(error)
            raise user_error(error) from error

    def _check_parts(self, error: Exception) -> None:
        for role, handle in self._parts().items():
            part = f"the {role.replace('-', ' ')} of the run"
            try:
                ray.get(handle.__ray_ready__.remote(), timeout=STATUS_TIMEOUT_S)
            except ray.exceptions.GetTimeoutError as late:
                raise LostActorError(f"{part} did not answer for {STATUS_TIMEOUT_S} s.") from late
            except ray.exceptions.RayActorError as lost:
                raise LostActorError(f"{part} died: {first_line(lost)}") from error

    def _parts(self) -> dict[str, ActorHandle]:
        return {
            names.SAMPLE_BUFFER: self.buffer,
            names.WEIGHT_STORE: self.store,
            names.CONTROLLER: self.controller,
            names.GENERATOR_POOL: self.pool,
        }

    def _watch(self, view: View, interrupts: Interrupts) -> None:
        running = [self.generators, self.learner]
        while running:
            done, running = ray.wait(running, timeout=POLL_S)
            if interrupts.at_once.is_set():
                raise KeyboardInterrupt
            if interrupts.at_checkpoint.is_set() and not self.stopping:
                self.stopping = self.controller.order.remote("stop")
            status = self.status(STATUS_TIMEOUT_S, interrupts.at_once)
            if status["failure"]:
                raise status["failure"]
            self.metrics.update(status)
            view.update(status)
            ray.get(done)
            started = status["started"] or status["iteration"]  # or one was gone back to
            if not started and time.monotonic() - self.began > self.config.run.start_timeout_s:
                raise ResourceError(self._late(status))
            if status["learner_away_s"] > self.config.run.start_timeout_s:
                raise ResourceError(
                    "the learner died, and no other was there within run.start_timeout_s="
                    f"{self.config.run.start_timeout_s:g} s. Its room may be gone with a node, or taken: see "
                    "the Ray dashboard. Resume the run where it has room, or raise the limit."
                )

    def _late(self, status: dict[str, Any]) -> str:
        states = ", ".join(
            f"{g['name']} {'is ' + g['state'] if g['placed'] else 'waits for resources'}"
            for g in status["generators"]
        )
        return (
            f"the run did not start within run.start_timeout_s={self.config.run.start_timeout_s:g} s "
            f"({states}). Look at the Ray dashboard for actors that wait for resources, or raise the limit."
        )

    def status(self, timeout: float, interrupted: threading.Event | None = None) -> dict[str, Any]:
        """How the run stands; as `run_status`."""
        return run_status(self.config.run.name, timeout, interrupted)

    def summary(self) -> dict[str, Any]:
        """The part of summary.json that only the actors know; empty if they are gone."""
        try:
            asked: Any = self.controller.summary.remote()
            controller = ray.get(asked, timeout=STOP_TIMEOUT_S)
            status = self.status(STOP_TIMEOUT_S)
        except ray.exceptions.RayError:
            return {}
        pairs_per_s, written = controller.pop("pairs_per_s"), status["in_all"]
        return controller | {
            "ledger": status["buffer"]["ledger"],
            "generators": {
                "deaths": len(status["deaths"]),
                "busy_share": written["busy_seconds"] / (written["ready_seconds"] or 1),
            },
            "throughput": {
                "pairs_per_s": pairs_per_s,
                "generated_tokens_per_s": written["generated_tokens"] / (written["busy_seconds"] or 1),
            },
        }

    def probe(self) -> Probe:
        """The learner's log-probs under the newest weights."""
        manifest: Any = self.store.get.remote(None)
        return ray.get(manifest, timeout=STATUS_TIMEOUT_S).probe

    def stop(self) -> None:
        """End every actor of the run, engines included, and free their names."""
        ray.cancel(self.learner, force=True)
        ray.wait([self.pool.stop.remote()], timeout=STOP_TIMEOUT_S)
        for handle in self._parts().values():
            ray.kill(handle)
        # They may have missed an actor that ended before them. Ray prints errors that nobody asks for.
        for part in (self.generators, self.learner):
            with suppress(ray.exceptions.RayError):
                ray.get(part, timeout=STOP_TIMEOUT_S)
        names.wait_free(self.config.run.name, self._parts(), STOP_TIMEOUT_S)

    def give_back_room(self) -> None:
        """Give back what Ray Train reserved, for another service in this job.

        It does so itself, but for a learner that is killed while its ranks start.
        """
        until = time.monotonic() + ENDING_S  # its controller may be about to reserve
        while time.monotonic() < until:
            give_back(reserved() - self.reserved_before)
            time.sleep(POLL_S)
