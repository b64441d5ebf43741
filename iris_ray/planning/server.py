"""What several share: actors that serve one call after the other, and the cores of a machine."""

from simpy import Environment, Timeout


class Server:
    """A single-threaded actor: calls wait in a row, and each occupies it for its own time."""

    def __init__(self, env: Environment, name: str):
        self.env = env
        self.name = name
        self.busy_s = 0.0
        self.calls = 0
        self._free_at = 0.0

    def call(self, seconds: float, calls: int = 1) -> Timeout:
        """Over once this call was served; `calls` that travel as one count as many."""
        self.occupy(seconds * calls, calls)
        return self.env.timeout(self._free_at - self.env.now)

    def occupy(self, seconds: float, calls: int = 0) -> None:
        """Work that nobody waits for."""
        self._free_at = max(self._free_at, self.env.now) + seconds
        self.busy_s += seconds
        self.calls += calls

    @property
    def utilisation(self) -> float:
        return min(self.busy_s / self.env.now, 1.0) if self.env.now else 0.0


class Cores:
    """Cores that processes share: where more compute than there are, each takes longer in proportion."""

    def __init__(self, count: float):
        self.count = count
        self.demand = 0.0

    def enter(self, cores: float) -> float:
        """Begin to compute on so many; returns by how much longer it takes."""
        self.demand += cores
        return max(1.0, self.demand / self.count)

    def leave(self, cores: float) -> None:
        self.demand -= cores
