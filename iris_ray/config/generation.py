"""Settings of the generators."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from iris_ray.config.section import Section


class Autoscale(Section):
    """More generators when the learner is about to wait, fewer when they only fill the buffer."""

    minimum: int = Field(1, ge=1)
    """Fewest generators."""
    maximum: int = Field(ge=1)
    """Most generators."""
    low: float = Field(2, ge=0)
    """One more generator below so many written batches ahead of the learner."""
    high: float = Field(8, gt=0)
    """One fewer above so many."""
    interval_s: float = Field(10, gt=0)
    """Seconds between two changes."""

    @model_validator(mode="after")
    def _ordered(self) -> "Autoscale":
        for low, high in (("minimum", "maximum"), ("low", "high")):
            if getattr(self, high) < getattr(self, low):
                raise ValueError(
                    f"{high} ({getattr(self, high)}) must be at least {low} ({getattr(self, low)})"
                )
        return self


class Generation(Section):
    count: int = Field(1, ge=1)
    """Generator actors at the start, each with one vLLM engine. `iris-ray scale` changes it in a run."""
    autoscale: Autoscale | None = None
    """Let the run choose the number of generators. Empty: it stays as it is set."""
    num_cpus: float = Field(1, ge=0)
    """Cores per generator. Below 1 several generators share a core."""
    bind_cores: bool = False
    """Give each generator `num_cpus` cores of its own that no other generator of the node runs on."""
    num_gpus: float = Field(0, ge=0)
    """GPUs per generator: `tensor_parallel` whole ones, or a part of one."""
    tensor_parallel: int = Field(1, ge=1)
    """GPUs that vLLM splits one engine's weights over."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Custom Ray resources per generator, such as `{generators: 1}`: only nodes that have them hold it."""
    labels: dict[str, str] = {}
    """Ray label selector of the generators' nodes."""
    max_failures: int = Field(5, ge=0)
    """Generators that may die in a row without one pair written in between; one more ends the run."""
    hang_timeout_s: float = Field(300, gt=0)
    """A generator whose engine does not answer for so long, between two steps, is replaced, in seconds."""
    drain_timeout_s: float = Field(60, ge=0)
    """How long a generator that leaves may finish its responses, in seconds; then they are handed back."""
    n: int = Field(1, ge=1)
    """Responses written to each prompt. Each of them makes a pair of its own."""
    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(1.0, gt=0, le=1)
    """Sample from the likeliest tokens that together reach this probability."""
    top_k: int = Field(0, ge=-1)
    """Sample from this many likeliest tokens. 0 or -1: from all."""
    min_p: float = Field(0.0, ge=0, le=1)
    """Sample from tokens at least this fraction as likely as the likeliest one."""
    stop: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that end a response beside the end token, written or annotated, each a single token of the
    tokenizer. The response keeps it as its last token."""
    concurrency: int = Field(64, ge=1)
    """Responses that one engine writes at the same time."""
    in_flight: Literal["finish", "continue", "resubmit"] = "finish"
    """Responses under way when newer weights come: they `finish` first; or they `continue` with the new
    weights and the keys and values that they have; or these are computed anew (`resubmit`)."""
    max_ahead: int = Field(2048, ge=1)
    """Pairs that may wait for the learner: a slow learner slows the generators."""
    kv_cache_gib: int = Field(1, ge=1)
    """KV cache of an engine on CPU, in whole GiB."""
    gpu_memory_utilization: float = Field(0.9, gt=0, le=1)
    enforce_eager: bool = False
    """Skip vLLM's compilation: starts sooner, writes slower."""
    engine_metrics: bool = False
    """Have vLLM report what each engine does as Ray metrics. Costs it some Python in every step."""

    @model_validator(mode="after")
    def _engine_fits(self) -> "Generation":
        if self.tensor_parallel > 1 and self.num_gpus != self.tensor_parallel:
            raise ValueError(
                f"generation.num_gpus ({self.num_gpus:g}) must be generation.tensor_parallel "
                f"({self.tensor_parallel}): vLLM's workers each take a whole GPU"
            )
        if self.tensor_parallel == 1 and self.num_gpus > 1:
            raise ValueError(
                f"generation.num_gpus ({self.num_gpus:g}): an engine with generation.tensor_parallel=1 uses "
                "one GPU. Raise tensor_parallel, or set num_gpus=1"
            )
        if 0 < self.num_gpus < self.gpu_memory_utilization and self.num_gpus < 1:
            raise ValueError(
                f"generation.num_gpus ({self.num_gpus:g}): vLLM takes generation.gpu_memory_utilization "
                f"({self.gpu_memory_utilization:g}) of the whole GPU, whatever part of it Ray gives. "
                f"Lower gpu_memory_utilization to {self.num_gpus:g} or less"
            )
        if self.bind_cores and (self.num_cpus < 1 or self.num_cpus % 1):
            raise ValueError(
                f"generation.bind_cores needs whole cores: generation.num_cpus is {self.num_cpus:g}"
            )
        if self.autoscale and not self.autoscale.minimum <= self.count <= self.autoscale.maximum:
            raise ValueError(
                f"generation.count ({self.count}) must lie between autoscale.minimum "
                f"({self.autoscale.minimum}) and autoscale.maximum ({self.autoscale.maximum})"
            )
        return self
