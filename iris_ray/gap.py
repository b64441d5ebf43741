"""Estimators of the gap D̂ between the annotated data and an opponent."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from iris_ray.registry import Registry


@dataclass(frozen=True)
class PairMeans:
    """Means over the pairs of some steps of a round.

    `reward_*` are sequence log-ratios and `reference_*` the opponent's sequence log-probs, in nats;
    `tokens_*` are lengths of responses. `loss` is that of the trained objective on these pairs at order
    `alpha`, and `iris_loss` is L_α on them, whatever is trained.
    """

    reward_real: float
    reward_synthetic: float
    reference_real: float
    reference_synthetic: float
    tokens_real: float
    tokens_synthetic: float
    loss: float
    iris_loss: float
    alpha: float

    @property
    def tokens(self) -> float:
        """Mean length of a response of either kind."""
        return (self.tokens_real + self.tokens_synthetic) / 2


@dataclass(frozen=True)
class GapEstimator:
    """`estimate` maps means over pairs to D̂ in nats per response token (`alpha.gap_per` may ask for more).

    `at` says which pairs: `end`, those of the last steps against the previous opponent; `start`, the
    first batch of the new opponent. There r = r' = 0, so that step is the same at every order, and α may be
    set after it. Not so where r is not 0 to begin with: at another temperature, or by as much as the
    generators' rounding differs from the learner's (`learner.reference=generator`).
    """

    estimate: Callable[[PairMeans], float]
    at: Literal["start", "end"]


GAP_ESTIMATORS: Registry[GapEstimator] = Registry("alpha.gap", "Gap estimators")


def register_gap_estimator(
    name: str, at: Literal["start", "end"]
) -> Callable[[Callable[[PairMeans], float]], Callable[[PairMeans], float]]:
    """Decorator: makes a function of `PairMeans` available under `name`."""

    def register(function: Callable[[PairMeans], float]) -> Callable[[PairMeans], float]:
        GAP_ESTIMATORS.register(name)(GapEstimator(function, at))
        return function

    return register


@register_gap_estimator("margin", at="end")
def margin(means: PairMeans) -> float:
    """(mean r − mean r') per response token, at the end of the previous opponent's training ([choice])."""
    return (means.reward_real - means.reward_synthetic) / means.tokens


@register_gap_estimator("variational", at="end")
def variational(means: PairMeans) -> float:
    """max(0, −α·L_α) per response token at the same point ([choice]).

    In expectation −α·L_α is a lower bound of D_α(p_data‖p_t) ([derived]).
    """
    return max(0.0, -means.alpha * means.iris_loss) / means.tokens


@register_gap_estimator("nll", at="start")
def nll(means: PairMeans) -> float:
    """NLL per token of annotated minus that of synthetic responses under the opponent, at least 0 ([choice]).

    Tells of the new opponent itself, but stays near 0 where annotated responses are nearly deterministic.
    """
    annotated = -means.reference_real / means.tokens_real
    return max(0.0, annotated + means.reference_synthetic / means.tokens_synthetic)
