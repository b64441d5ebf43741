"""Telling a run's events to its trackers, beside the run."""

import json
import threading
from importlib import import_module
from importlib.util import find_spec
from operator import methodcaller
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.run_folder import RunFolder
from iris_ray.tracking.follower import Follower
from iris_ray.tracking.tracker import End, Tracker
from iris_ray.whole_file import write_whole

if TYPE_CHECKING:
    from iris_ray.view import View

PAUSE_S = 0.5
END_TIMEOUT_S = 60  # in which trackers may take what is left

EXTRAS = {"wandb": "Wandb", "mlflow": "Mlflow"}
CLASSES = {"tensorboard": "TensorBoard"} | EXTRAS
# Events that are told, and the name under which their values stand.
TOLD = {"step": "step", "baseline": "iteration", "iteration": "iteration", "update": "update"}
PLACES = ("time", "iteration", "step", "global_step", "version")  # say where a value belongs


def check_trackers(config: RunConfig) -> None:
    """Raise `ConfigError` if a tracker's package is missing."""
    for name in EXTRAS:
        if getattr(config.tracking, name) and find_spec(name) is None:
            raise ConfigError(
                f"tracking.{name}: the package {name} is not installed. Install it with "
                f"pip install 'iris-ray[{name}]', or leave the setting out."
            )


class Tracking:
    """A thread of the driver that follows metrics.jsonl, so that a slow tracker holds up nobody else.

    tracking.json says what was told already: a run that goes on in another program leaves nothing out. A
    tracker that fails is told nothing more, and the run goes on.
    """

    def __init__(self, config: RunConfig, folder: RunFolder, view: "View"):
        """Raises `ConfigError` if a tracker cannot be reached."""
        self.file, self.view = folder.tracking, view
        state: dict[str, Any] = {"time": 0.0, "ids": {}}
        if self.file.exists():
            state = json.loads(self.file.read_text())
        self.ids: dict[str, str] = state["ids"]
        self.follower = Follower(folder.metrics, since=state["time"])
        self.step = 0  # the last one that was told, over the whole run
        self.trackers: dict[str, Tracker] = {}
        try:
            for name, class_name in CLASSES.items():
                if name not in EXTRAS or getattr(config.tracking, name):
                    tracker_class = getattr(import_module(f"iris_ray.tracking.{name}"), class_name)
                    self.trackers[name] = tracker_class(config, folder, self.ids.get(name))
        except BaseException:
            self._have_all(methodcaller("close", "failed"))
            raise
        self.ids |= {name: tracker.id for name, tracker in self.trackers.items() if tracker.id}
        self.over = threading.Event()
        self.end: End = "finished"
        self.thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Self:
        self._save()
        self.thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is not None:
            self.end = "stopped" if issubclass(kind, KeyboardInterrupt) else "failed"
        self.over.set()
        self.thread.join(END_TIMEOUT_S)
        if self.thread.is_alive():
            late = TimeoutError(f"waited {END_TIMEOUT_S} s for it to take the rest")
            self.view.tracker_lost(" or ".join(self.trackers), late)

    def _follow(self) -> None:
        while not self.over.wait(PAUSE_S):
            self._tell()
        self._tell()
        self._have_all(methodcaller("close", self.end))

    def _tell(self) -> None:
        events = self.follower.new()
        for event in events:
            kind = event["event"]
            if kind in ("step", "resumed"):
                self.step = event["global_step"]
            if kind == "resumed":
                self._have_all(methodcaller("go_back", self.step))
            elif kind in TOLD:
                step = 0 if kind == "baseline" else event.get("global_step", self.step)
                self._have_all(methodcaller("tell", _values(event), step, event["time"]))
        if events:
            self._have_all(methodcaller("flush"))
            self._save()

    def _have_all(self, do: Any) -> None:
        for name, tracker in list(self.trackers.items()):
            try:
                do(tracker)
            except Exception as error:  # of a library, its server or the network: not the run's affair
                del self.trackers[name]
                self.view.tracker_lost(name, error)

    def _save(self) -> None:
        write_whole(self.file, json.dumps({"time": self.follower.time, "ids": self.ids}) + "\n")


def _values(event: dict[str, Any]) -> dict[str, float]:
    """Its numbers, named `kind/field`."""
    numbers = {name: value for name, value in event.items() if isinstance(value, int | float)}
    return {f"{TOLD[event['event']]}/{n}": float(value) for n, value in numbers.items() if n not in PLACES}
