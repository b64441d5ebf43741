"""The order α of the objective: gap estimators and the schedule that turns a gap into an order."""

from collections.abc import Callable
from dataclasses import dataclass

from iris_ray.config import Alpha


@dataclass(frozen=True)
class RoundEnd:
    """Where training against an opponent ended: means over the pairs of the last steps.

    `reward_real` and `reward_synthetic` are mean sequence log-ratios in nats, `loss` is L_α on the same
    pairs at order `alpha`, `response_tokens` the mean length of their responses.
    """

    reward_real: float
    reward_synthetic: float
    loss: float
    alpha: float
    response_tokens: float


def margin(end: RoundEnd) -> float:
    """(mean r − mean r') per response token, at the end of the previous opponent's training ([choice])."""
    return (end.reward_real - end.reward_synthetic) / end.response_tokens


def variational(end: RoundEnd) -> float:
    """max(0, −α·L_α) per response token, a lower bound of D_α(p_data‖p_t) at the same point ([choice])."""
    return max(0.0, -end.alpha * end.loss) / end.response_tokens


GAP_ESTIMATORS: dict[str, Callable[[RoundEnd], float]] = {"margin": margin, "variational": variational}


@dataclass(frozen=True)
class Order:
    """α for one opponent, the gap D̂ it follows from (nats per response token) and a sentence on why."""

    alpha: float
    gap: float
    reason: str


def next_order(config: Alpha, end: RoundEnd | None) -> Order:
    """α against the next opponent; `end` is the end of the previous round, `None` before the first.

    Gap feedback: α_t = clip(1 + c·D̂_t, minimum, maximum), recomputed per opponent ([note]); the
    estimators of D̂ and the default c are ours ([choice]).
    """
    gap = config.initial_gap if end is None else GAP_ESTIMATORS[config.gap](end)
    if config.schedule == "fixed":
        return Order(config.value, gap, "fixed")
    alpha = min(max(1 + config.c * gap, config.minimum), config.maximum)
    source = "initial gap" if end is None else f"{config.gap} gap"
    limits = f"{config.minimum:g}–{config.maximum:g}"
    return Order(alpha, gap, f"1 + {config.c:g} · {source} {gap:.4f}, within {limits}")
