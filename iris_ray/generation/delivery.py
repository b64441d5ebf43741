"""How long a generator lets pairs come together before it delivers them."""

LEAST_S, MOST_S = 0.1, 5.0
TIMES = 30


def delivery_pause(took: float = 0.0) -> float:
    """Seconds to wait, where the delivery before `took` so many.

    Where the buffer is slow to answer, because thousands of generators deliver to it, each does so less often
    and brings more. So the buffer has time left for its learner.
    """
    return min(max(LEAST_S, TIMES * took), MOST_S)
