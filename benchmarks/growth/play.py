"""A run, a program of its own: `python -m benchmarks.growth.play RECIPE FILE`.

It writes into FILE what only the driver knows: a JSON object a line, with the `time` in s since 1970.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import ray

from iris_ray import RunConfig, SelfPlay
from iris_ray.preparation import Prepared
from iris_ray.view import View


class Store(View):
    """Tells when the data were prepared, and what Ray's object store holds."""

    def __init__(self, path: Path):
        self.file = path.open("w", buffering=1)

    def prepared(self, config: RunConfig, prepared: Prepared) -> None:
        self._write({"prepared": True})

    def update(self, status: dict[str, Any]) -> None:
        sizes = ray.cluster_resources(), ray.available_resources()
        whole, free = (size.get("object_store_memory", 0.0) for size in sizes)
        self._write({"store_bytes": whole - free})

    def _write(self, values: dict[str, Any]) -> None:
        self.file.write(json.dumps({"time": time.time()} | values) + "\n")


if __name__ == "__main__":
    SelfPlay(RunConfig.from_yaml(sys.argv[1]), Store(Path(sys.argv[2]))).run()
