"""What a run tells a person while it goes on."""

from typing import Any

from iris_ray.checkpoints import StoredCheckpoint
from iris_ray.config import RunConfig
from iris_ray.errors import LostActorError
from iris_ray.preparation import Prepared
from iris_ray.scratch.warmup import WarmupResult


class View:
    """Shows nothing; override what is to be shown."""

    def prepared(self, config: RunConfig, prepared: Prepared) -> None:
        """Data and tokenizer are ready."""

    def warmup(self, step: int, steps: int, loss: float, exact_match: float | None) -> None:
        """A step of the warm-up of `model.scratch`; loss in nats per token."""

    def warmed_up(self, result: WarmupResult) -> None:
        """The warm-up is over."""

    def resuming(self, checkpoint: StoredCheckpoint | None) -> None:
        """A run is gone on with from `checkpoint`, or from its beginning if there is none."""

    def lost(self, error: LostActorError, checkpoint: StoredCheckpoint | None) -> None:
        """An actor with state of the run died, so the run goes back to `checkpoint`, or to its beginning."""

    def tracker_lost(self, name: str, error: Exception) -> None:
        """A tracker failed and is told nothing more. Comes from another thread."""

    def waiting(self, missing: str) -> None:
        """The run waits for nodes of the cluster that bring what is `missing`."""

    def starting(self, where: dict[str, str | None]) -> None:
        """The actors start, on the cluster that `where` tells of (as cluster.json)."""

    def update(self, status: dict[str, Any]) -> None:
        """How the run stands, several times a second (`Service.status`)."""
