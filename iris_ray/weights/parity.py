"""Proof that a weight update really landed."""

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.errors import ParityError
from iris_ray.weights.manifest import Probe

# Ordinary differences between two engines that compute the same model, in nats per token, with room. In
# bfloat16 logits between 16 and 32 are an eighth apart.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.5}
OF_THE_MEAN = 0.2  # share of it that the mean may have: rounding is different in each token


def check_parity(
    probe: Probe, logprobs: list[list[float]], config: RunConfig, generator: str, version: int
) -> float:
    """Largest |difference| between the learner's and a generator's log-probs, in nats per token.

    Raises `ParityError` where a token's exceeds `sync.parity_tolerance`, or their mean a fifth of it: an
    update can fail without a word, for instance where a tied output head keeps a packed copy of the old
    weights.
    """
    tolerance = config.sync.parity_tolerance or TOLERANCE[config.model.dtype]
    differences = np.abs(np.subtract(np.concatenate(probe.logprobs), np.concatenate(logprobs)))
    largest, mean = float(differences.max()), float(differences.mean())
    if not (largest <= tolerance and mean <= OF_THE_MEAN * tolerance):  # NaN counts as a difference
        raise ParityError(
            f"{generator} does not serve weights version {version}: its log-probs differ from the learner's "
            f"by up to {largest:.3g} nats per token, {mean:.3g} on average. {tolerance:.3g} is allowed for "
            f"{config.model.dtype}, and a fifth of it on average. "
            "Pairs written with it would be wrong. Report the model's architecture, or raise "
            "sync.parity_tolerance if the model is known to differ that much between the two engines."
        )
    return largest
