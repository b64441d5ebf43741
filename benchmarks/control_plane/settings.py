"""What is played."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, disable_progress_bars

from iris_ray.config import RunConfig
from iris_ray.run_folder import RunFolder

RUN = "control-plane"


@dataclass(frozen=True)
class Settings:
    """`rate`: pairs that a generator would write in a second, if it were never kept waiting."""

    rate: float = 10.0
    seconds: float = 20.0
    processes: int = 2
    prompt_tokens: int = 64
    response_tokens: int = 128
    batch: int = 1024
    concurrency: int = 16

    def config(self, folder: Path, generators: int = 1) -> RunConfig:
        under_way = generators * self.concurrency
        return RunConfig.from_dict(
            {
                "run": {"name": RUN, "folder": str(folder)},
                "model": {"path": "none", "dtype": "float32"},
                "data": {"path": "made-here"},
                "schedule": {"iterations": 1, "epochs": 1},
                # Batches are taken in order: what was written early waits for what was leased before it.
                "generation": {"concurrency": self.concurrency, "max_ahead": 4 * under_way + self.batch},
                "learner": {"batch_size": self.batch},
            }
        )

    def write_data(self, folder: Path, prompts: int) -> None:
        """The split `train`. All rows have the same tokens: only how many there are costs anything."""
        prompt, response = np.arange(self.prompt_tokens), np.arange(self.response_tokens)
        rows = {
            "prompt_id": np.arange(prompts),
            "prompt_tokens": np.broadcast_to(prompt.astype(np.int32), (prompts, len(prompt))),
            "response_tokens": np.broadcast_to(response.astype(np.int32), (prompts, len(response))),
        }
        disable_progress_bars()
        Dataset.from_dict(rows).save_to_disk(RunFolder(folder / RUN).data / "train")
