"""Proof that a weight update really landed."""

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.errors import ParityError
from iris_ray.weights.manifest import Probe

# Ordinary differences between two engines that compute the same model, in nats per token, with room.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}
# More of it for unlikely tokens, as a share of their log-prob: their logits are large, and are rounded to the
# dtype. Two of its machine epsilons.
RELATIVE = {"float32": 2**-22, "bfloat16": 2**-6}


def check_parity(
    probe: Probe, logprobs: list[list[float]], config: RunConfig, generator: str, version: int
) -> float:
    """Largest |difference| between the learner's and a generator's log-probs, in nats per token.

    Raises `ParityError` where a token's exceeds `sync.parity_tolerance` and the rounding of its logits: an
    update can fail without a word, for instance where a tied output head keeps a packed copy of the old
    weights.
    """
    dtype = config.model.dtype
    learners = np.concatenate(probe.logprobs)
    differences = np.abs(learners - np.concatenate(logprobs))
    allowed = (config.sync.parity_tolerance or TOLERANCE[dtype]) + RELATIVE[dtype] * np.abs(learners)
    worst = np.argmax(differences - allowed)  # NaN counts as the worst
    if not differences[worst] <= allowed[worst]:
        raise ParityError(
            f"{generator} does not serve weights version {version}: of a token that the learner gives a "
            f"log-prob of {learners[worst]:.3g} its own differs by {differences[worst]:.3g} nats, "
            f"{allowed[worst]:.3g} is allowed for {dtype}. "
            "Pairs written with it would be wrong. Report the model's architecture, or raise "
            "sync.parity_tolerance if the model is known to differ that much between the two engines."
        )
    return float(differences.max())
