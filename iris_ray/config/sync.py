"""Settings of the weights on their way."""

from typing import Literal

from pydantic import Field, model_validator

from iris_ray.config.section import Section


class Sync(Section):
    transport: Literal["object_store", "nccl", "gloo"] = "object_store"
    """How weights reach generators: `object_store` by way of Ray's memory, on any hardware; `nccl` in one
    broadcast from GPU to GPU; `gloo` the same between CPUs, to try it where there are none."""
    bucket_mib: int = Field(64, ge=1)
    """Weights travel in buckets of about this size. A larger tensor makes a bucket of its own."""
    buffer_mib: int = Field(512, ge=1)
    """Memory for weights on their way into a generator's engine. What fits in it is made ready before the
    engine stands still."""
    probe_sequences: int = Field(4, ge=1)
    """Annotated pairs whose log-probs learner and generator must agree on after every update."""
    parity_tolerance: float | None = Field(None, gt=0)
    """Largest difference of a token that is allowed, in nats; a fifth of it for the mean. Empty: by dtype."""
    timeout_s: float = Field(300, gt=0)
    """How long one weight update may take, in seconds."""

    @model_validator(mode="after")
    def _fits(self) -> "Sync":
        if self.buffer_mib < 2 * self.bucket_mib:
            raise ValueError(
                f"buffer_mib ({self.buffer_mib}) must be at least twice bucket_mib ({self.bucket_mib}): one "
                "bucket is loaded while the next one is fetched"
            )
        return self
