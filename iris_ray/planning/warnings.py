"""What will not fit, and what will hold a run up, with what to do about it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from iris_ray.planning.footprint import Footprint
from iris_ray.refresh import steps_between

if TYPE_CHECKING:
    from iris_ray.planning.planner import Planner

WAITS = 0.1  # share of an iteration from which waiting is worth a word
BUSY = 0.7  # share of its time from which an actor makes others wait


def warnings_of(
    planner: "Planner", learner: Footprint, generator: Footprint, found: dict[str, Any]
) -> list[str]:
    return [
        *_room(planner, learner, generator),
        *_limits(planner),
        *_waiting(planner, found),
        *_actors(planner, found),
    ]


def _room(planner: "Planner", learner: Footprint, generator: Footprint) -> Iterator[str]:
    config, hardware = planner.config, planner.hardware
    where = "GPU" if planner.on_gpus else "node"
    if not learner.fits:
        yield (
            f"A learner rank takes {learner.in_all:.1f} GiB of a {where}'s {learner.room:.1f} GiB. In this "
            "order: learner.zero_stage=3, more learner.workers, learner.reference=generator, a smaller "
            "learner.micro_batch_tokens, learner.gradient_checkpointing, learner.offload, model.lora."
        )
    if not generator.fits or generator.parts["KV cache"] <= 0:
        yield (
            f"A generator's weights leave no room for its cache in {generator.room:.1f} GiB of a {where}. "
            "Raise generation.tensor_parallel."
        )
    elif planner.concurrency < config.generation.concurrency:
        yield (
            f"An engine's cache holds {planner.concurrency} responses of mean length, and "
            f"generation.concurrency is {config.generation.concurrency}: the others wait for cache."
        )
    generation, ranks = config.generation, config.learner.workers
    host = generation.count * generator.host + ranks * learner.host
    there = hardware.nodes * hardware.node_memory_gib
    if host > there:
        yield (
            f"All processes ask for {host:.0f} GiB of host memory, and there are {there:.0f} GiB. Add nodes "
            "or lower generation.count, learner.workers or generation.kv_cache_gib."
        )
    if planner.on_gpus:
        gpus = generation.count * max(generation.num_gpus, generation.tensor_parallel)
        gpus += ranks * config.learner.num_gpus
        if gpus > hardware.gpus:
            yield (
                f"The recipe asks for {gpus:g} GPUs, and there are {hardware.gpus}. Lower "
                "generation.count or learner.workers."
            )
    elif (cores := generation.count * generation.num_cpus + ranks * config.learner.num_cpus) > hardware.cores:
        yield f"The recipe asks for {cores:g} cores, and there are {hardware.cores}."


def _limits(planner: "Planner") -> Iterator[str]:
    config = planner.config
    batch, slots = config.learner.batch_size, config.generation.count * planner.concurrency
    if config.learner.workers > batch:
        yield (
            f"learner.workers ({config.learner.workers}) is above learner.batch_size ({batch}): "
            f"{config.learner.workers - batch} ranks have no pair to train on."
        )
    every = steps_between(config.schedule)
    needed = planner.ahead_needed(config.generation.count)
    if min(needed, planner.pairs) > config.generation.max_ahead:
        yield (
            f"The engines have {slots} places, and generation.max_ahead lets {config.generation.max_ahead} "
            f"pairs be under way or waiting. Generators are never held up from {needed} on."
        )
    if every and slots > (window := (config.schedule.max_staleness + 1) * every * batch):
        yield (
            f"The engines have {slots} places, and schedule.refresh, schedule.max_staleness and "
            f"learner.batch_size let {window} pairs be under way. Raise one of them, or the generators idle."
        )
    if slots > planner.pairs:
        yield f"The engines have {slots} places, and an iteration has {planner.pairs} pairs: some stay empty."
    sync = planner.sync()
    if sync.in_all > config.sync.timeout_s:
        yield (
            f"An update takes about {sync.in_all:.0f} s, and sync.timeout_s is {config.sync.timeout_s:g}. "
            "Raise it."
        )


def _waiting(planner: "Planner", found: dict[str, Any]) -> Iterator[str]:
    learner, generators = found["learner_idle_share"], found["generators_idle_share"]
    if learner > WAITS:
        yield (
            f"The learner waits {learner:.0%} of the time. More generators help, or a larger "
            "generation.concurrency, as long as the generators do not idle as well."
        )
    if generators > 0.5:
        fewer = "fewer would do, or " if planner.config.generation.count > 1 else ""
        yield f"Generators idle {generators:.0%} of the time: {fewer}give the learner more."


def _actors(planner: "Planner", found: dict[str, Any]) -> Iterator[str]:
    full = planner.saturation()
    for name, share in found["busy_share"].items():
        if share >= BUSY:
            at = f" It is busy all the time at {full[name]} generators kept full." if name in full else ""
            yield f"The {name} is busy {share:.0%} of the time and makes others wait.{at}"
