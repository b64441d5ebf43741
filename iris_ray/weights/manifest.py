"""What is published of a weights version."""

from dataclasses import dataclass
from typing import Any, Literal

from iris_ray.errors import ResourceError


class WeightsLost(ResourceError):
    """A published version is gone: who published it died. It is published anew, as another one."""


@dataclass(frozen=True)
class TensorSpec:
    """A tensor in its bucket: `dtype` as torch spells it (`bfloat16`), `offset` and `nbytes` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Bucket:
    """`data` is the object reference of a list of 1-D uint8 arrays, one for each of `tensors`; `None` if the
    learner broadcasts them."""

    data: Any
    tensors: list[TensorSpec]


@dataclass(frozen=True)
class Probe:
    """Fixed token sequences and the learner's log-probs of every token but the first, in nats."""

    sequences: list[list[int]]
    logprobs: list[list[float]]


@dataclass(frozen=True)
class WeightManifest:
    """A whole version: its buckets in layer order, and the probe that proves them after loading.

    The weight store counts what is published in `serial`: a run that goes back to a checkpoint publishes
    the same version again, with other weights.
    """

    version: int
    buckets: list[Bucket]
    probe: Probe
    serial: int = 0


@dataclass(frozen=True)
class Meeting:
    """Where the members of a group find each other: at rank 0, which sends. Waits end after `timeout_s`."""

    backend: Literal["nccl", "gloo"]
    host: str
    port: int
    ranks: int
    timeout_s: float


@dataclass(frozen=True)
class Broadcast:
    """The learner sends a version to generators that came for it.

    `number` counts the broadcasts. `first_rank` of each generator in the group: an engine that is split has
    as many members as parts.
    """

    number: int
    manifest: WeightManifest
    meeting: Meeting
    first_rank: dict[str, int]
