"""Settings of a run as a whole."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from iris_ray.config.section import Section


class Run(Section):
    name: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run; its folder is `<folder>/<name>`. Several recipes that do not set it: their file names,
    joined by `-`."""
    folder: Path = Path("runs")
    """Where run folders are kept. On a cluster of several nodes: storage that all nodes see."""
    seed: int = Field(0, ge=0)
    """Seeds the data order, the made models, the sampling and the evaluation split."""
    ray_address: str | None = None
    """Ray cluster to join, for instance `auto`. Empty: RAY_ADDRESS if set, else a local cluster."""
    plugins: list[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]] = []
    """Python modules to import everywhere; they register objectives, schedules or gap estimators."""
    start_timeout_s: float = Field(600, gt=0)
    """How long the actors may take to start, in seconds."""
    wait_for_nodes: bool = False
    """Wait so long for nodes, too, where an autoscaler brings them. A run that does not fit on the nodes
    that are there is refused otherwise."""
    wait_timeout_s: float = Field(900, gt=0)
    """How long the learner waits for a batch, or a generator for work on its weights, in seconds."""
    max_failures: int = Field(3, ge=0)
    """How often the run goes back to its last checkpoint because an actor that holds its state died."""
