"""A worker's end of the line to the parent: requests come by stdin, answers go by stdout, line by line."""

import json
import os
import sys
from typing import Any

from benchmarks.learner.memory import forget_peak, peak_mib


class Channel:
    """Takes stdout for itself: whatever else is printed goes to stderr."""

    def __init__(self) -> None:
        self._out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def request(self) -> str:
        """Wait for the next request. Ends the process when there are no more."""
        for line in sys.stdin:
            match line.strip():
                case "peak_mib":
                    self.answer({"mib": peak_mib()})
                case "forget_peak":
                    forget_peak()
                    self.answer({})
                case name:
                    return name
        self._out.flush()
        # No more is wanted of this process, and a trainer that is stopped in its step has much to say.
        os._exit(0)

    def answer(self, values: dict[str, Any]) -> None:
        """Answer the last request."""
        self._out.write(json.dumps(values) + "\n")
        self._out.flush()
