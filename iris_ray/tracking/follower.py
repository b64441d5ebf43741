"""Reading a metrics.jsonl that is being written."""

import json
from pathlib import Path
from typing import Any


class Follower:
    """Tells each event once, also when the run goes back to a checkpoint and cuts the file.

    `since`: time of the last event that is known already, in s since 1970.
    """

    def __init__(self, path: Path, since: float):
        self.path = path
        self.time = since
        self._position = 0
        self._last_line = b""

    def new(self) -> list[dict[str, Any]]:
        """The events that came since the last time."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self._position - len(self._last_line))
            if file.read(len(self._last_line)) != self._last_line:  # the file was cut
                file.seek(0)
                self._position, self._last_line = 0, b""
            lines = [line for line in file if line.endswith(b"\n")]  # the last may be half written
        if lines:
            self._position += sum(map(len, lines))
            self._last_line = lines[-1]
        # After a cut, what stayed in the file is known: everything new is later.
        events = [event for event in map(json.loads, lines) if event["time"] > self.time]
        if events:
            self.time = events[-1]["time"]
        return events
