"""What a plan is made for: machines, links, and what is known of them."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, ValidationError, model_validator

from iris_ray.config import Section
from iris_ray.errors import ConfigError


class CallSeconds(Section):
    """Seconds that an actor is occupied by a call: its base, and a part for each pair in it.

    The defaults were measured on a virtual machine with two cores (docs/planning.md)."""

    lease: float = Field(5.2e-4, ge=0)
    """Sample buffer: hand out prompts."""
    lease_pair: float = Field(9e-6, ge=0)
    add: float = Field(5.9e-4, ge=0)
    """Sample buffer: take in written pairs."""
    add_pair: float = Field(4e-7, ge=0)
    share: float = Field(1e-3, ge=0)
    """Sample buffer: a rank's batch, and entering it in the ledger afterwards."""
    share_pair: float = Field(6e-6, ge=0)
    wake: float = Field(1.9e-6, ge=0)
    """Sample buffer: look again whether there is work for a generator that waits, after every step."""
    get: float = Field(5.6e-4, ge=0)
    """Weight store: which version is the newest; asked for with every lease."""
    record: float = Field(5.5e-4, ge=0)
    """Controller: take note of a step or an update."""
    heartbeat: float = Field(3.9e-4, ge=0)
    """Generator pool: ask a generator how it is."""


class MadeUpData(Section):
    """Lengths to plan with where the data are not at hand."""

    prompts: int = Field(ge=1)
    prompt_tokens: float = Field(ge=1)
    """Mean length."""
    response_tokens: float = Field(ge=2)
    """Mean length of annotated and written responses, end token included."""
    spread: float = Field(0.5, ge=0, le=3)
    """Standard deviation of a length, divided by its mean. Lengths are log-normal."""


class Hardware(Section):
    """Machines of one kind. Rates are peaks as a data sheet tells them; `…_share` is what is reached of them.

    Without GPUs, `matrix_tflops` is that of one core, and `bandwidth_gb_s` that of a node's memory.
    """

    nodes: int = Field(1, ge=1)
    gpus_per_node: int = Field(0, ge=0)
    cores_per_node: int = Field(2, ge=1)
    node_memory_gib: float = Field(16, gt=0)
    gpu_memory_gib: float | None = Field(None, gt=0)
    matrix_tflops: float = Field(gt=0, le=100_000)
    bandwidth_gb_s: float = Field(gt=0, le=1_000_000)
    within_node_gb_s: float = Field(10, gt=0)
    """Of each GPU to others of its node; between processes of a node where there are no GPUs."""
    between_nodes_gb_s: float = Field(1, gt=0)
    """Of a node to another one."""
    host_to_gpu_gb_s: float = Field(25, gt=0)
    """Of each GPU."""
    storage_gb_s: float = Field(1, gt=0)
    """Of the storage for checkpoints."""
    learner_share: float = Field(0.4, gt=0, le=1)
    """Of `matrix_tflops`, what the learner's passes reach."""
    prefill_share: float = Field(0.5, gt=0, le=1)
    """Of `matrix_tflops`, what reading prompts reaches."""
    bandwidth_share: float = Field(0.7, gt=0, le=1)
    """Of `bandwidth_gb_s`, what writing responses and the optimiser reach."""
    engine_step_s: float = Field(0.004, ge=0)
    """What a step of a generator's engine costs beside arithmetic and memory, in seconds."""
    engine_request_s: float = Field(0.002, ge=0)
    """What a request costs it besides: Python and messages for each response, and for each that is scored."""
    learner_pass_s: float = Field(0.02, ge=0)
    """The same of one of the learner's passes over a micro-batch; a step has three to six."""
    start_s: float = Field(40, ge=0)
    """Seconds until a new generator is ready."""
    generator_failure_hours: float | None = Field(None, gt=0)
    """Mean time to a generator's death. Empty: none dies."""
    calls: CallSeconds = CallSeconds()
    data: MadeUpData | None = None
    """Empty: the recipe's data are read."""

    @model_validator(mode="after")
    def _gpus_have_memory(self) -> "Hardware":
        if self.gpus_per_node and self.gpu_memory_gib is None:
            raise ValueError(
                f"gpu_memory_gib is missing: {self.gpus_per_node} GPUs per node have memory. Set it, or set "
                "gpus_per_node=0"
            )
        if not self.gpus_per_node and self.gpu_memory_gib is not None:
            raise ValueError(
                f"gpu_memory_gib ({self.gpu_memory_gib:g}) without GPUs: set gpus_per_node, or leave it out"
            )
        return self

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def cores(self) -> int:
        return self.nodes * self.cores_per_node

    @classmethod
    def from_yaml(cls, path: Path) -> "Hardware":
        """Raises `ConfigError` that names the field, its value and the fix."""
        if not path.is_file():
            raise ConfigError(f"--hardware {path}: there is no such file. docs/planning.md shows one.")
        try:
            values = yaml.safe_load(path.read_text())
        except yaml.YAMLError as error:
            raise ConfigError(f"--hardware {path} is not valid YAML: {error}") from error
        if not isinstance(values, dict):
            raise ConfigError(f"--hardware {path} must hold fields such as 'nodes: 1'.")
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            lines = [f"  {_explain(dict(item))}" for item in error.errors()]
            raise ConfigError("\n".join([f"--hardware {path}:", *lines])) from error


def _explain(item: dict[str, Any]) -> str:
    field = ".".join(map(str, item["loc"]))
    if item["type"] == "extra_forbidden":
        return f"{field}: there is no such field. There are: {', '.join(Hardware.model_fields)}."
    if item["type"] == "missing":
        return f"{field}: is missing; please set it."
    message = item["msg"].removeprefix("Value error, ")
    return f"{field}: {item['input']!r} does not fit: {message}." if field else message
