"""How often generators are asked whether they live."""

EVERY_S = 1.0
MOST_PER_S = 1000  # that one process asks, which has other things to do


def heartbeat_s(generators: int) -> float:
    """Seconds from one heartbeat of a generator to its next, where there are so many of them."""
    return max(EVERY_S, generators / MOST_PER_S)
