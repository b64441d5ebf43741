"""How the runs got on: steps, what was repeated, and how long it took to get going again."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Incident:
    """A fault that was brought about, or an order, and what came of it. Times are in s since 1970.

    `goes_back`: only steps after the run went back to a checkpoint show that it is over it.
    """

    name: str
    time: float
    goes_back: bool
    run: str
    told: str = ""
    went_back: bool = False
    stepped: float | None = None
    replaced: float | None = None
    leased: int = 0

    @property
    def seconds(self) -> float | None:
        return None if self.stepped is None else self.stepped - self.time


@dataclass
class Progress:
    """What the events tell. `prompts`: of an iteration."""

    prompts: int
    incidents: list[Incident] = field(default_factory=list)
    run: str = ""
    steps: int = 0
    repeated_steps: int = 0
    written_again: int = 0
    deaths: int = 0
    warnings: dict[str, int] = field(default_factory=dict)
    last_step: int = 0  # counted over the run
    last_time: float = 0.0
    written: int = 0  # pairs of the run, as a status told last
    went_back: bool = False
    leased: int = 0  # pairs that generators were writing, as a status told last

    @property
    def is_waiting(self) -> bool:
        """Whether the run is not yet over some incident of its own."""
        return any(one.stepped is None for one in self._own())

    def _own(self) -> list[Incident]:
        return [one for one in self.incidents if one.run == self.run]

    def begin_run(self, name: str) -> None:
        self.run = name
        self.last_step = self.written = 0
        self.went_back = False

    def take(self, event: dict[str, Any]) -> None:
        kind, time = event["event"], event["time"]
        waiting = [one for one in self._own() if one.stepped is None and one.time < time]
        if kind == "step":
            self.steps += 1
            self.last_step, self.last_time = event["global_step"], time
            for one in waiting:
                if one.went_back or not one.goes_back:
                    one.stepped = time
        elif kind == "resumed":
            self.repeated_steps += max(self.last_step - event["global_step"], 0)
            self.last_step, self.went_back = event["global_step"], True
            for one in waiting:
                one.went_back = True
        elif kind == "generator" and event["state"] == "ready":
            for one in self._own():
                if one.replaced is None and one.time < time:
                    one.replaced = time
        elif kind == "generator" and event["state"] == "died":
            self.deaths += 1
        elif kind == "warning":
            self.warnings[event["kind"]] = self.warnings.get(event["kind"], 0) + 1

    def take_status(self, status: dict[str, Any]) -> None:
        """`status` is the gateway's. What is not there any more after going back is written again."""
        buffer = status["buffer"]
        if not buffer["pairs"]:  # between two rounds
            return
        self.leased = buffer["leased"]
        written = (status["iteration"] - 1) * self.prompts + buffer["written"]
        if self.went_back:
            self.written_again += max(self.written - written, 0)
            self.written = written
            self.went_back = False
        self.written = max(self.written, written)
