"""The events of a run's metrics.jsonl as they come, also those that are cut off again later."""

import json
from pathlib import Path
from typing import Any

Event = dict[str, Any]


class Follower:
    """Reads one file. A run that goes back to a checkpoint cuts it, and writes on."""

    def __init__(self, path: Path):
        self.path = path
        self.offset = 0
        self.before = b""  # what must stand before the offset
        self.newest = 0.0

    def new(self) -> list[Event]:
        """Whole lines that came since the last call."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as file:
            file.seek(self.offset - len(self.before))
            if file.read(len(self.before)) != self.before:
                file.seek(0)  # cut in between: what is new is told by its time
            start = file.tell()
            read = file.read()
        whole = read[: read.rfind(b"\n") + 1]
        if whole:
            self.offset, self.before = start + len(whole), whole[-80:]
        elif start == 0:
            self.offset, self.before = 0, b""
        events = [event for event in map(json.loads, whole.splitlines()) if event["time"] > self.newest]
        self.newest = max([self.newest, *(event["time"] for event in events)])
        return events
