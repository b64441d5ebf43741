"""The arithmetic that training on a pair needs, whoever does it.

A forward pass needs these multiplications, each with an addition:

- in each layer, every weight of its matrices for each token of prompt, y and y', the prompt once;
- in each layer, twice the hidden size for each token and each token that it may look at (query times
  key, weight times value), itself included; the prompt's tokens again once;
- every weight of the output head for each position that predicts a response token.

The backward pass needs twice as many: once for the gradient of what goes in, once for that of the
weights (of the other factor, in attention). There is no pass of the reference in it, no padding, and
nothing is computed twice. Norms, activations, softmax and the optimiser are left out.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from benchmarks.learner.workload import Workload
from iris_ray.contracts import SelfPlayPair

FLOPS_PER_MULTIPLICATION = 2
PASSES = 3  # forward, and backward twice


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of forward and backward pass, by what they are needed for."""

    layers: int
    attention: int
    head: int

    @property
    def total(self) -> int:
        return self.layers + self.attention + self.head


def needed_flops(model: Workload, pairs: Iterable[SelfPlayPair]) -> Flops:
    """What one optimiser step over `pairs` needs."""
    kv = model.hidden // model.heads * model.kv_heads
    weights = 2 * model.hidden**2 + 2 * model.hidden * kv + 3 * model.hidden * model.intermediate
    tokens = visible = predicted = 0
    for pair in pairs:
        prompt = len(pair.prompt_tokens)
        tokens += prompt
        visible += _causal(prompt)
        for response in (pair.real_tokens, pair.synthetic_tokens):
            tokens += len(response)
            visible += _causal(len(response)) + prompt * len(response)
            predicted += len(response)
    unit = PASSES * FLOPS_PER_MULTIPLICATION
    return Flops(
        layers=unit * model.layers * weights * tokens,
        attention=unit * model.layers * 2 * model.hidden * visible,
        head=unit * model.hidden * model.vocab * predicted,
    )


def _causal(length: int) -> int:
    """Couples of a token and one that it may look at."""
    return length * (length + 1) // 2
