"""A recipe on given hardware: memory, the balanced split, and what a simulation of it says."""

import math
from dataclasses import asdict
from typing import Any

from iris_ray.config import RunConfig
from iris_ray.generation.delivery import delivery_pause
from iris_ray.memory import GIB
from iris_ray.planning.footprint import (
    cached_tokens,
    checkpoint_gib,
    generator_footprint,
    learner_footprint,
)
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import ModelShape
from iris_ray.planning.rates import EngineRates, LearnerRates, Speeds
from iris_ray.planning.simulation import Costs, Simulation
from iris_ray.planning.weight_sync import SyncSeconds, sync_seconds
from iris_ray.planning.workload import Workload

SIMULATED = 2  # iterations; those that follow are like the last of them
# Beside the engine's own: its front end unpacks the log-probs of whole sequences. From the online run in
# docs/planning.md.
SCORING_CORES = 0.5
CLOSE = 0.05  # what more GPUs must bring at least
BETWEEN_S = 1.0  # beside writing a checkpoint: opening the next round, measured on two cores


class Planner:
    """Plans one recipe; `speeds` come from the hardware's peaks, or from measured runs."""

    def __init__(
        self,
        config: RunConfig,
        hardware: Hardware,
        shape: ModelShape,
        workload: Workload,
        speeds: Speeds | None = None,
        speeds_from: str = "",
    ):
        self.config = config
        self.hardware = hardware
        self.shape = shape
        self.workload = workload
        self.speeds = speeds or Speeds.of(hardware, config)
        self.speeds_from = speeds_from or "Speeds are shares of the hardware's peaks: nothing was measured."
        self.on_gpus = config.generation.num_gpus > 0

    def with_split(self, generators: int, ranks: int) -> "Planner":
        """The same with so many; `generation.max_ahead` is raised to where it holds nobody up."""
        ahead = max(self.config.generation.max_ahead, self.ahead_needed(generators))
        split = {"count": generators, "autoscale": None, "max_ahead": ahead}
        config = self.config.model_copy(
            update={
                "generation": self.config.generation.model_copy(update=split),
                "learner": self.config.learner.model_copy(update={"workers": ranks}),
            }
        )
        return Planner(config, self.hardware, self.shape, self.workload, self.speeds, self.speeds_from)

    def ahead_needed(self, generators: int) -> int:
        """Pairs that must be under way or waiting for no engine to run dry.

        Batches are served in order. While the longest response of a batch is written, others are begun and
        finished behind it.
        """
        written = self.workload.written
        longest = float(written.max() / written.mean())
        return math.ceil(generators * self.concurrency * (1 + longest)) + self.config.learner.batch_size

    @property
    def engine(self) -> EngineRates:
        return EngineRates(self.speeds, self.shape, self.config.model.dtype, self.on_gpus)

    @property
    def learner(self) -> LearnerRates:
        return LearnerRates(self.speeds, self.shape, self.config, self.hardware)

    @property
    def concurrency(self) -> int:
        """Responses that an engine writes at a time: those whose keys and values fit into its cache."""
        prompt, _, written = self.workload.means()
        footprint = generator_footprint(self.config, self.hardware, self.shape)
        fitting = int(cached_tokens(self.config, footprint, self.shape) / (prompt + written))
        return max(1, min(self.config.generation.concurrency, fitting))

    @property
    def pairs(self) -> int:
        """Of an iteration, each counted once."""
        limit = self.config.schedule.prompts_per_iteration or self.workload.prompts
        return min(limit, self.workload.prompts) * self.config.generation.n

    def generator_pairs_per_s(self) -> float:
        """Of one engine that is kept full."""
        prompt, real, written = self.workload.means()
        count = self.concurrency
        token_s = self.engine.decode_s(count, prompt + written / 2) / count
        reading = self.engine.request_s() + self.engine.read_s(prompt)
        if self.config.learner.reference == "generator":
            reading += self.engine.request_s(scored=True) + self.engine.read_s(prompt + real, scored=True)
        return 1 / (written * token_s + reading)

    @property
    def steps(self) -> int:
        """Of one pass over an iteration's pairs."""
        return math.ceil(self.pairs / self.config.learner.batch_size)

    def step_s(self, first_pass: bool) -> float:
        """Of an optimiser step of mean size, alone on its cores."""
        lengths, pairs = self.workload.means(), self.pairs / self.steps
        flops, tokens = pairs * self.shape.pair_flops(*lengths), pairs * sum(lengths)
        return self.learner.step_s(flops, tokens, math.ceil(pairs), first_pass)

    def training_s(self) -> float:
        """Of an iteration, were all pairs there: every pass."""
        return self.steps * sum(self.step_s(epoch == 0) for epoch in range(self.config.schedule.epochs))

    def writing_s(self) -> float:
        return self.pairs / (self.config.generation.count * self.generator_pairs_per_s())

    def sync(self, transport: str | None = None) -> SyncSeconds:
        prompt, real, _ = self.workload.means()
        count, transport = self.config.generation.count, transport or self.config.sync.transport
        return sync_seconds(
            self.config, self.hardware, self.shape, self.engine, count, prompt + real, transport
        )

    def checkpoint_s(self) -> float:
        size = checkpoint_gib(self.config, self.shape)["between_iterations"] * GIB
        return size / self.config.learner.workers / (self.hardware.storage_gb_s * 1e9)

    def costs(self) -> Costs:
        hardware = self.hardware
        failure_h = hardware.generator_failure_hours
        scores = self.config.learner.reference == "generator"
        return Costs(
            self.shape,
            self.engine,
            self.learner,
            self.sync(),
            hardware.calls,
            between_s=BETWEEN_S + self.checkpoint_s(),
            checkpoint_s=self.checkpoint_s(),
            start_s=hardware.start_s,
            failure_s=None if failure_h is None else 3600 * failure_h,
            cores=None if self.on_gpus else hardware.cores,
            engine_cores=self.speeds.engine_cores + SCORING_CORES * scores,
            learner_cores=self.config.learner.workers * max(1, int(self.config.learner.num_cpus)),
        )

    def simulate(self, iterations: int | None = None) -> dict[str, Any]:
        """What `Simulation.run` returns, and the seconds of the whole run, its start included."""
        wanted = self.config.schedule.iterations
        played = min(wanted, iterations or SIMULATED)
        generation = self.config.generation.model_copy(update={"concurrency": self.concurrency})
        config = self.config.model_copy(update={"generation": generation})
        found = Simulation(config, self.workload, self.costs(), played).run()
        last = found["iterations"][-1]["seconds"] + self.costs().between_s
        found["run_seconds"] = self.hardware.start_s + found["seconds"] + (wanted - played) * last
        return found

    def balanced(self) -> "Planner | None":
        """A split of all GPUs (or cores); `None` if the learner fits on no number of them.

        Of all numbers of ranks the least whose slower side is within `CLOSE` of the fastest. Beside them as
        many generators as keep up, or twice or four times as many if simulations find that worth it.
        """
        splits = [(split, split.simulate(iterations=1)["pairs_per_s"]) for split in self._splits()]
        fastest = max((rate for _, rate in splits), default=0.0)
        return next((split for split, rate in splits if rate > fastest / (1 + CLOSE)), None)

    def _splits(self) -> list["Planner"]:
        """Those to choose from, the fewest generators first."""
        generation, learner = self.config.generation, self.config.learner
        if self.on_gpus:
            there, per_engine, per_rank = self.hardware.gpus, generation.tensor_parallel, 1
        else:
            there = self.hardware.cores
            per_engine, per_rank = max(1, int(generation.num_cpus)), max(1, int(learner.num_cpus))
        fitting: list[tuple[float, Planner]] = []
        for ranks in range(1, min((there - per_engine) // per_rank, learner.batch_size) + 1):
            split = self.with_split((there - ranks * per_rank) // per_engine, ranks)
            if learner_footprint(split.config, self.hardware, self.shape, self.workload).fits:
                fitting.append((max(split.training_s(), split.writing_s()), split))
        if not fitting:
            return []
        best = min(seconds for seconds, _ in fitting)
        most = next(split for seconds, split in fitting if seconds <= best * (1 + CLOSE))
        count = most.config.generation.count
        enough = math.ceil(count * most.writing_s() / max(best, most.training_s()))
        counts = sorted({min(enough * more, count) for more in (1, 2, 4)})
        return [most.with_split(fewer, most.config.learner.workers) for fewer in counts]

    def saturation(self) -> dict[str, int]:
        """Number of generators, kept full, at which each actor is busy all the time."""
        calls, rate, full = self.hardware.calls, self.generator_pairs_per_s(), self.concurrency
        adds = min(rate, 1 / delivery_pause())
        buffer = (
            adds * calls.add
            + rate * (calls.add_pair + calls.lease_pair + calls.share_pair)
            + rate / full * calls.lease
            + rate / self.config.learner.batch_size * calls.share
        )
        per_generator = {
            "sample buffer": buffer,
            "weight store": rate / full * calls.get,
        }
        return {name: math.floor(1 / seconds) for name, seconds in per_generator.items() if seconds}

    def report(self) -> dict[str, Any]:
        """All of it, in plain JSON types."""
        from iris_ray.planning.warnings import warnings_of

        learner = learner_footprint(self.config, self.hardware, self.shape, self.workload)
        generator = generator_footprint(self.config, self.hardware, self.shape)
        expected = self.simulate()
        split = self.balanced()
        transports = ["object_store", "nccl" if self.on_gpus else "gloo"]
        if self.config.model.lora:
            del transports[1]
        prompt, real, written = self.workload.means()
        report: dict[str, Any] = {
            "run": self.config.run.name,
            "model": {"parameters": self.shape.parameters, "trained": self.shape.trained},
            "data": {
                "prompts": self.workload.prompts,
                "pairs_per_iteration": self.pairs,
                "prompt_tokens": prompt,
                "annotated_tokens": real,
                "written_tokens": written,
            },
            "speeds": asdict(self.speeds),
            "speeds_from": self.speeds_from,
            "memory_gib": {
                role: {
                    "parts": footprint.parts,
                    "in_all": footprint.in_all,
                    "room": footprint.room,
                    "fits": footprint.fits,
                    "host": footprint.host,
                }
                for role, footprint in (("learner", learner), ("generator", generator))
            },
            "checkpoint_gib": checkpoint_gib(self.config, self.shape),
            "concurrency": self.concurrency,
            "sync_seconds": {
                name: asdict(self.sync(name)) | {"in_all": self.sync(name).in_all} for name in transports
            },
            "as_configured": self._side(expected),
            "balanced": split and split._side(split.simulate()),
            "saturation_generators": self.saturation(),
        }
        report["warnings"] = warnings_of(self, learner, generator, expected)
        return report

    def _side(self, found: dict[str, Any]) -> dict[str, Any]:
        """A split, what each side would take alone, and what the simulation says of both together."""
        return {
            "generators": self.config.generation.count,
            "learner_ranks": self.config.learner.workers,
            "max_ahead": self.config.generation.max_ahead,
            "generator_pairs_per_s": self.generator_pairs_per_s(),
            "writing_alone_s": self.writing_s(),
            "training_alone_s": self.training_s(),
            "simulated": found,
        }
