"""Our side: `SelfPlayLearner`, one rank, as an actor would drive it."""

import os
import time
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.learner.channel import Channel
from benchmarks.learner.job import Job
from benchmarks.learner.matrix_peak import matrix_rates
from benchmarks.learner.model import build_model
from benchmarks.learner.workload import LEARNING_RATE, TORCH_NAMES
from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair
from iris_ray.learner.self_play_learner import SelfPlayLearner
from iris_ray.precision import cpu_multiplies

ALPHA = 1.5


class OurSide:
    """Each answer has its times in seconds, one for each step."""

    def __init__(self, job: Job):
        os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        self.job = job
        self.dtype = getattr(torch, TORCH_NAMES[job.dtype])
        self.batches = job.workload.batches(job.steps)
        self.learner = SelfPlayLearner(build_model(job.workload), _config(job), torch.device("cpu"))
        self.learner.start_round(iteration=1, steps=10**6)

    def serve(self, channel: Channel) -> None:
        """Answer requests for as long as there are any."""
        answers = {
            "block": self.block,
            "with_reference": self.with_reference,
            "matrix": self.matrix,
            "profile": self.profile,
        }
        while True:
            channel.answer(answers[channel.request()]())

    def block(self) -> dict[str, Any]:
        """Steps with references that are known, as in every pass over the pairs but the first."""
        for pairs in self.batches:
            self.learner.score_references(pairs)
        return {"seconds": [self._step(pairs) for pairs in self.batches]}

    def with_reference(self) -> dict[str, Any]:
        """Steps that score the references too, as in the first pass."""
        self.learner.references.clear()
        return {"seconds": [self._step(pairs) for pairs in self.batches]}

    def matrix(self) -> dict[str, Any]:
        """Operations per second of plain matrix products, of the format that the learner's have."""
        return {"rates": matrix_rates(self.dtype if cpu_multiplies(self.dtype) else torch.float32)}

    def profile(self) -> dict[str, Any]:
        """Seconds of a step by what they were spent on."""
        from benchmarks.learner.profiling import profile_steps

        self.block()
        return {"seconds": profile_steps(self.learner, self.batches, ALPHA, self.job.workload.vocab)}

    def _step(self, pairs: list[SelfPlayPair]) -> float:
        start = time.perf_counter()
        report = self.learner.step(pairs, ALPHA).report
        seconds = time.perf_counter() - start
        # A step that skips its backward pass would look fast.
        assert not report.skipped, report
        return seconds


def _config(job: Job) -> RunConfig:
    return RunConfig.from_dict(
        {
            "model": {"path": "made-here", "dtype": TORCH_NAMES[job.dtype]},
            "data": {
                "path": "made-here",
                "max_prompt_tokens": job.workload.longest,
                "max_response_tokens": job.workload.longest,
            },
            "learner": {
                "batch_size": job.workload.pairs,
                "compile": job.compile,
                "zero_stage": job.zero_stage,
                "learning_rate": LEARNING_RATE,
                "lr_schedule": "constant",
                "lr_warmup_ratio": 0,
            },
        }
    )
