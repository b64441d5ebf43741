"""What the curves of a run are told to."""

from typing import Literal

End = Literal["finished", "failed", "stopped"]


class Tracker:
    """Takes nothing in; override what it needs.

    It is made of the run's configuration and folder, and of its `id` from before if the run is resumed.
    Making it raises `ConfigError` if it cannot be reached.
    """

    id: str | None = None
    """Its own name for the run, where it needs one to go on."""

    def tell(self, values: dict[str, float], step: int, time: float) -> None:
        """Values at an optimiser step, counted over the whole run; `time` in s since 1970."""

    def go_back(self, step: int) -> None:
        """The steps behind `step` will be taken again."""

    def flush(self) -> None:
        """Let others see what was told."""

    def close(self, end: End) -> None:
        """The run is over, or its program is."""
