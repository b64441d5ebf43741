"""How many generators there should be."""

from iris_ray.config import Autoscale


def autoscaled(settings: Autoscale, batch_size: int, count: int, ahead: int, leasable: int) -> int:
    """The number of generators that follows `count`: one more, one fewer, or the same.

    `ahead`: written pairs that the learner has not come to yet; `leasable`: prompts that one more generator
    could begin with. Below the low mark the learner is about to wait, and one more helps if there are any.
    Above the high mark generators only fill the buffer.
    """
    if ahead < settings.low * batch_size and leasable:
        count += 1
    elif ahead > settings.high * batch_size:
        count -= 1
    return min(max(count, settings.minimum), settings.maximum)
