"""Both sides side by side, in turns."""

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import product
from statistics import median
from typing import Any

from benchmarks.learner.arithmetic import needed_flops
from benchmarks.learner.job import PRECOMPUTED, Job, Side
from benchmarks.learner.worker_process import WorkerProcess
from benchmarks.learner.workload import DType, Workload

# The peer's ways to train in a number format, its own first. The faster one is the peer.
PEERS: dict[DType, tuple[Side, ...]] = {"bf16": ("mixed", "plain"), "fp32": ("plain",)}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How to measure. A block is `steps` optimiser steps; each side has `repeats` of them."""

    workload: Workload = field(default_factory=Workload)
    threads: int = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    steps: int = 8
    repeats: int = 7
    compile: bool = True
    zero_stage: int = 0
    precomputed: bool = True
    """Measure the peer with log-probs of the reference computed before training, too."""
    every_peer: bool = True
    """Measure all of the peer's ways to train, not only its own."""

    peer_compile: bool = False
    """Measure each of the peer's ways with `torch_compile`, too: the start then takes minutes."""

    def jobs(self, dtype: DType) -> list[Job]:
        """Our side, then all ways of the peer."""
        ours = Job(
            side="ours",
            dtype=dtype,
            threads=self.threads,
            steps=self.steps,
            blocks=self.repeats,
            workload=self.workload,
            compile=self.compile,
            zero_stage=self.zero_stage,
        )
        sides = PEERS[dtype] if self.every_peer else PEERS[dtype][:1]
        ways = product((False, True)[: 1 + self.precomputed], (False, True)[: 1 + self.peer_compile], sides)
        return [ours] + [
            replace(ours, side=side, compile=compiled, precomputed=precomputed)
            for precomputed, compiled, side in ways
        ]


@dataclass(frozen=True)
class Blocks:
    """Pairs per second of each block, repeat by repeat, and memory in MiB."""

    rates: dict[str, list[float]]
    """By side: `ours`, `ours-with-reference`, and the peers."""
    matrix_rates: dict[str, list[float]]
    """Operations per second of matrix products, by size."""
    memory: dict[str, dict[str, float]]
    """By side: with its imports done, and the most in its steps."""


def measure(settings: Settings, dtype: DType, say: Say) -> dict[str, Any]:
    """The report for one number format. Raises `WorkerFailed`."""
    blocks = _play(settings.jobs(dtype), settings, lambda text: say(f"{dtype}: {text}"))
    return summarise(settings, blocks)


def _play(jobs: list[Job], settings: Settings, say: Say) -> Blocks:
    rates: dict[str, list[float]] = {}
    matrix: dict[str, list[float]] = {}
    pairs = settings.steps * settings.workload.pairs

    def play(worker: WorkerProcess, request: str, name: str) -> None:
        worker.ask("forget_peak")
        rates.setdefault(name, []).append(pairs / sum(worker.ask(request)["seconds"]))
        held = memory[worker.job.name]
        held["peak"] = max(held.get("peak", 0), worker.ask("peak_mib")["mib"])

    with ExitStack() as stack:
        say("starting the workers")
        workers = [stack.enter_context(WorkerProcess(job)) for job in jobs]
        memory = {worker.job.name: {"imported": worker.answer()["imported_mib"]} for worker in workers}
        for worker in workers:
            say(f"warming up {worker.job.name}")
            worker.ask("block")
            if worker.job.side == "ours":
                worker.ask("with_reference")
        for repeat in range(settings.repeats):
            say(f"repeat {repeat + 1} of {settings.repeats}")
            # Back and forth: what drifts with time touches all sides alike.
            for worker in workers if repeat % 2 == 0 else reversed(workers):
                play(worker, "block", worker.job.name)
                if worker.job.side == "ours":
                    play(worker, "with_reference", "ours-with-reference")
                    for size, rate in worker.ask("matrix")["rates"].items():
                        matrix.setdefault(size, []).append(rate)
    return Blocks(rates, matrix, memory)


def summarise(settings: Settings, blocks: Blocks) -> dict[str, Any]:
    """Medians over repeats, each with its least and greatest value.

    Ratios are taken repeat by repeat: `ratio` of our step with known references to TRL's step as it comes,
    `with_reference_ratio` of steps that both score references, `precomputed_ratio` of steps that neither
    does. `peak_fraction` is the arithmetic that the pairs need over what plain matrix products would do in
    our step's time.
    """
    ours, ours_scoring = blocks.rates["ours"], blocks.rates["ours-with-reference"]
    batches = settings.workload.batches(settings.steps)
    flops = needed_flops(settings.workload, (pair for pairs in batches for pair in pairs))
    per_pair = flops.total / (settings.steps * settings.workload.pairs)
    peak = max(median(rates) for rates in blocks.matrix_rates.values())
    report: dict[str, Any] = {
        "gflop_per_pair": per_pair / 1e9,
        "peak_gflops": peak / 1e9,
        "matrix_gflops": {
            size: _spread("median", (rate / 1e9 for rate in rates))
            for size, rates in blocks.matrix_rates.items()
        },
    }
    report |= _spread("pairs_per_s", ours)
    report |= _spread("with_reference_pairs_per_s", ours_scoring)
    report |= _spread("peak_fraction", (rate * per_pair / peak for rate in ours))
    sides = {"ours": "ours"}
    peers = [name for name in blocks.rates if not name.startswith("ours")]
    for precomputed, prefix in ((False, "peer"), (True, "peer_precomputed")):
        names = [name for name in peers if name.endswith(PRECOMPUTED) == precomputed]
        if not names:
            continue
        sides[prefix] = fastest = max(names, key=lambda name: median(blocks.rates[name]))
        peer = blocks.rates[fastest]
        report[prefix] = fastest
        report |= _spread(f"{prefix}_pairs_per_s", peer)
        if precomputed:
            report |= _spread("precomputed_ratio", _ratios(ours, peer))
        else:
            report |= _spread("ratio", _ratios(ours, peer))
            report |= _spread("with_reference_ratio", _ratios(ours_scoring, peer))
    report["peers"] = {name: _spread("pairs_per_s", blocks.rates[name]) for name in peers}
    report["peak_memory_mib"] = {key: blocks.memory[name]["peak"] for key, name in sides.items()}
    report["imported_memory_mib"] = {key: blocks.memory[name]["imported"] for key, name in sides.items()}
    return report


def _ratios(ours: list[float], peer: list[float]) -> list[float]:
    return [a / b for a, b in zip(ours, peer, strict=True)]


def _spread(name: str, values: Iterable[float]) -> dict[str, float]:
    """Median, least and greatest of `values` under `name`, `name_min` and `name_max`."""
    ordered = sorted(values)
    return {name: median(ordered), f"{name}_min": ordered[0], f"{name}_max": ordered[-1]}
