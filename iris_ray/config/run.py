"""Settings of a run as a whole."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator

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
    """Ray cluster to join, such as `10.0.0.1:6379`. Empty: that of RAY_ADDRESS, else the one that runs on
    this machine, else a new one for this run alone. `auto` never starts one."""
    plugins: list[Annotated[str, Field(pattern=r"^\w+(\.\w+)*$")]] = []
    """Python modules to import everywhere; they register objectives, schedules or gap estimators."""
    start_timeout_s: float = Field(600, gt=0)
    """How long the actors may take to start, in seconds."""
    wait_for_nodes: bool = False
    """Wait up to `run.start_timeout_s` for nodes, too, where an autoscaler brings them. A run that does not
    fit on the nodes that are there is refused otherwise."""
    wait_timeout_s: float = Field(900, gt=0)
    """How long the learner waits for a batch, or a generator for work on its weights, in seconds."""
    max_failures: int = Field(3, ge=0)
    """How often the run goes back to its last checkpoint because an actor that holds its state died."""

    @field_validator("folder", mode="before")
    @classmethod
    def _on_a_file_system(cls, value: Any) -> Any:
        if "://" in str(value):
            raise ValueError(
                f"{str(value)!r} is a URI, and run folders need a file system. Mount that storage and name "
                "the folder where it is mounted; only checkpoint.storage takes URIs"
            )
        return value
