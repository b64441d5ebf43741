"""What both sides write, and on what. Plain data, handed to both processes."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from benchmarks.learner.workload import TORCH_NAMES, DType, Workload
from iris_ray.config import RunConfig

RUN = "generator-benchmark"


@dataclass(frozen=True)
class Settings:
    """A block is a round: `prompts` prompts, `replicas` responses to each. Each side has `repeats` blocks."""

    core: int
    """The core of the generator and of the peer; they take turns."""
    model: Workload = field(default_factory=lambda: Workload(response_tokens=2))
    dtype: DType = "bf16"
    prompts: int = 512
    replicas: int = 1
    max_tokens: int = 64
    """Longest response; a made model seldom ends one by itself."""
    concurrency: int = 64
    repeats: int = 7
    eager: bool = False
    peer_in_process: bool = False
    """Run the peer's engine in its caller's process, which is not vLLM's default."""

    @property
    def workload(self) -> Workload:
        """All prompts as one batch."""
        return replace(self.model, pairs=self.prompts)

    def config(self, folder: Path) -> RunConfig:
        """The run that the generator plays in, its model and data lying in `folder`."""
        responses = self.prompts * self.replicas
        return RunConfig.from_dict(
            {
                "run": {"name": RUN, "folder": str(folder)},
                "model": {"path": str(folder / "model"), "dtype": TORCH_NAMES[self.dtype]},
                "data": {
                    "path": "made-here",
                    "max_prompt_tokens": self.workload.longest,
                    "max_response_tokens": self.max_tokens,
                },
                "generation": {
                    "n": self.replicas,
                    "concurrency": self.concurrency,
                    "max_ahead": responses,
                    "enforce_eager": self.eager,
                },
                "learner": {"batch_size": min(64, responses)},
                "evaluation": {"prompts": 0},
            }
        )
