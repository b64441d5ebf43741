"""A run that goes on until it is stopped, with a gateway and every metric there is."""

import tempfile
from pathlib import Path
from typing import Any

import httpx
import openai
from conftest import made_model
from run_process import WAIT_S, free_ports, play

LONGEST, MOST, BODY_KIB = 12, 3, 8
PROMPTS = 600
RECIPE = {
    "run": {"name": "served"},
    "model": made_model(warmup_steps=20),
    "data": {
        "sort_digits": {"examples": PROMPTS, "min_digits": 2, "max_digits": 4},
        "holdout": 8,
        "max_prompt_tokens": 64,
        "max_response_tokens": LONGEST,
    },
    "schedule": {"iterations": 100_000, "epochs": 1},
    "generation": {
        "num_cpus": 0.25,
        "enforce_eager": True,
        "concurrency": 16,
        "max_ahead": 64,
        "engine_metrics": True,
    },
    "learner": {"num_cpus": 0.5, "batch_size": 40, "learning_rate": 1e-4},
    "evaluation": {"prompts": 8},
}


class Served:
    """The run, and clients of its gateway. `ray_folder` is where Ray says which nodes to scrape."""

    def __init__(self, folder: Path):
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        # Short, as paths of sockets must be.
        self._temporary = tempfile.TemporaryDirectory(dir="/tmp", ignore_cleanup_errors=True)
        self.ray_folder = Path(self._temporary.name)
        own = {
            "gateway": {"port": port, "max_requests": MOST, "max_body_kib": BODY_KIB},
            "data": RECIPE["data"] | {"inbox": str(folder / "inbox")},
        }
        often = {"RAY_TMPDIR": str(self.ray_folder), "RAY_metrics_report_interval_ms": "1000"}
        self.run = play(RECIPE | own, folder, **often)
        self.folder = self.run.folder
        self.wait_for = self.run.wait_for

    def wait_until_it_trains(self) -> None:
        self.wait_for(lambda: self.run.events("step"))
        self.token = (self.folder / "gateway.token").read_text().strip()
        self.http = httpx.Client(base_url=self.url, timeout=2 * WAIT_S)
        self.openai = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key="none", timeout=2 * WAIT_S, max_retries=0
        )

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.http.post(path, headers={"Authorization": f"Bearer {self.token}"}, **options)

    def steps(self) -> int:
        return len(self.run.events("step"))

    def kill(self) -> None:
        self.run.kill()
        self._temporary.cleanup()
