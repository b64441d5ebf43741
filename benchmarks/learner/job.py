"""What a worker process is told when it starts."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from benchmarks.learner.workload import DType, Workload

# `ours`: SelfPlayLearner. `mixed`: DPOTrainer as it comes, float32 weights under bfloat16 autocast.
# `plain`: DPOTrainer with weights in the benchmark's number format, and no autocast.
Side = Literal["ours", "mixed", "plain"]
PRECOMPUTED = "-precomputed"


@dataclass(frozen=True)
class Job:
    """One side of the comparison: what it trains, in which number format, on how many threads.

    A block is `steps` optimiser steps over the same batches in the same order on both sides. A worker has
    to stand at least `blocks` of them.
    """

    side: Side
    dtype: DType
    threads: int
    steps: int
    blocks: int
    workload: Workload = field(default_factory=Workload)
    compile: bool = True
    """`ours`: `learner.compile`. `mixed` and `plain`: the trainer's `torch_compile`."""
    zero_stage: int = 0
    """`ours`: ZeRO stage of DeepSpeed."""
    precomputed: bool = False
    """`mixed` and `plain`: the reference's log-probs are computed before training."""

    @property
    def name(self) -> str:
        """`ours`, or how the peer trains, for instance `mixed-compiled-precomputed`."""
        if self.side == "ours":
            return self.side
        return self.side + "-compiled" * self.compile + PRECOMPUTED * self.precomputed

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Job":
        values: dict[str, Any] = json.loads(text)
        return cls(**values | {"workload": Workload(**values["workload"])})
