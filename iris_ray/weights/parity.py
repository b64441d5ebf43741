"""Proof that a weight update really landed."""

import numpy as np

from iris_ray.config import RunConfig
from iris_ray.errors import ParityError
from iris_ray.weights.manifest import Probe

# Ordinary differences between two engines that compute the same model, in nats per token, with room.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.1}


def check_parity(
    probe: Probe, logprobs: list[list[float]], config: RunConfig, generator: str, version: int
) -> float:
    """Largest |difference| between the learner's and a generator's log-probs, in nats per token.

    Raises `ParityError` when it exceeds `sync.parity_tolerance`: an update can fail without a word, for
    instance where a tied output head keeps a packed copy of the old weights.
    """
    tolerance = config.sync.parity_tolerance or TOLERANCE[config.model.dtype]
    differences = np.subtract(np.concatenate(probe.logprobs), np.concatenate(logprobs))
    largest = float(np.abs(differences).max())
    if not largest <= tolerance:  # NaN counts as a difference
        raise ParityError(
            f"{generator} does not serve weights version {version}: its log-probs differ from the learner's "
            f"by up to {largest:.3g} nats per token, {tolerance:.3g} is allowed for {config.model.dtype}. "
            "Pairs written with it would be wrong. Report the model's architecture, or raise "
            "sync.parity_tolerance if the model is known to differ that much between the two engines."
        )
    return largest
