"""The time in which a run lived."""

from bisect import bisect_right

from iris_ray.report.history import History


class Clock:
    """Seconds since the run's beginning in which it lived, as in its iterations' `seconds`.

    From the checkpoint that a run went back to until it was resumed, nothing counts.
    """

    def __init__(self, history: History):
        self.begin = float(history.times[0])
        self.at = sorted(event["time"] for event in history.events.get("resumed", []))
        self.left_out = [0.0]
        for time in self.at:
            before = history.times[history.times < time]
            self.left_out.append(self.left_out[-1] + (time - before[-1] if len(before) else 0.0))

    def __call__(self, time: float) -> float:
        return float(time) - self.begin - self.left_out[bisect_right(self.at, time)]
