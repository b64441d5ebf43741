"""What is played, for how long, and what is allowed."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

RECIPE = Path(__file__).parents[2] / "recipes" / "demo.yaml"
ENDLESS = 100_000  # iterations
OFTEN = 100_000


@dataclass(frozen=True)
class Settings:
    """`gap_s`: mean seconds between two faults or orders; `rate`: requests a second; `every_s`: of samples.

    Margins are what may be gained in an hour: MiB of a process, and file handles of one.
    """

    minutes: float = 60.0
    seed: int = 0
    gap_s: float = 30.0
    rate: float = 3.0
    every_s: float = 5.0
    most_generators: int = 3
    memory_margin: float = 60.0
    handles_margin: float = 30.0

    @property
    def seconds(self) -> float:
        return 60 * self.minutes

    @property
    def half_s(self) -> float:
        """From here on nothing is killed that holds the run's state: what leaks has time to show."""
        return self.seconds / 2


def recipe(name: str, folder: Path, port: int, endless: bool) -> dict[str, Any]:
    """The demo with its own settings; what bounds deaths is raised, as there are more of them.

    It ends after its three iterations, or is `endless`.
    """
    demo: dict[str, Any] = yaml.safe_load(RECIPE.read_text())
    demo["run"] |= {"name": name, "folder": str(folder), "max_failures": OFTEN}
    demo["data"] |= {"inbox": str(folder / f"{name}-inbox")}
    demo["generation"] |= {"hang_timeout_s": 20}
    demo["learner"] |= {"max_failures": OFTEN}
    demo["gateway"] = {"port": port}
    demo["checkpoint"] = {"every_steps": 20}
    if endless:
        demo["schedule"] |= {"iterations": ENDLESS}
    return demo


def prompts(demo: dict[str, Any]) -> int:
    """Of an iteration."""
    return demo["schedule"]["prompts_per_iteration"]
