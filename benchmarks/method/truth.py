"""How far a model is from p_data: exact sums over all answers, no estimates."""

import functools
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from benchmarks.method.worlds import World
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.token_batch import PromptGroup, TokenBatch, pad

CHUNK = 512  # sequences a forward pass: what it touches stays in the processor's cache


@dataclass(frozen=True)
class Truth:
    """A model p_θ beside p_data, averaged over the held-out prompts."""

    kl: float
    """KL(p_data‖p_θ) in nats per response."""
    tv: float
    """Total variation, 0 ... 1."""
    validity: float
    """p_θ of the whole support of p_data: the share of the model's samples that are possible answers."""
    nll: float
    """Cross entropy of p_data under p_θ in nats per response: `kl` + entropy of p_data."""


class Examiner:
    """Measures models in one world, whose answers it lays out once.

    Shapes: S sequences, the answers to all held-out prompts.
    """

    def __init__(self, world: World):
        sequences: list[PromptGroup] = []
        probabilities = []
        for prompt in world.heldout_prompts:
            answers, p = world.answers(prompt)
            sequences += [PromptGroup(prompt, [answer]) for answer in answers]
            probabilities.append(p)
        self._p_S = torch.cat(probabilities)
        self._prompts = len(world.heldout_prompts)
        self._batches: list[TokenBatch] = [
            pad(sequences[first : first + CHUNK]) for first in range(0, len(sequences), CHUNK)
        ]
        self.entropy = -float((self._p_S * self._p_S.log()).sum()) / self._prompts
        """Of p_data, in nats per response: the smallest possible `nll`."""

    @torch.inference_mode()
    def measure(self, model: PreTrainedModel) -> Truth:
        scorer = SequenceScorer(model, head_apart=True)
        log_q_S = torch.cat([batch.sum_by_sequence(scorer(batch)) for batch in self._batches])
        q_S = log_q_S.exp()
        nll = -float((self._p_S * log_q_S).sum()) / self._prompts
        # Total variation is the sum of max(0, p − q) over everything that can be said. Where p is 0 nothing
        # is added, so the support is enough: what q puts elsewhere is missing in it, and so counted there.
        tv = float((self._p_S - q_S).clamp(min=0).sum()) / self._prompts
        validity = float(q_S.sum()) / self._prompts
        return Truth(nll - self.entropy, tv, validity, nll)


def measure(model: PreTrainedModel, world: World) -> Truth:
    """Exact metrics of `model`, over the held-out prompts of `world`."""
    return _examiner(world).measure(model)


@functools.lru_cache(maxsize=8)
def _examiner(world: World) -> Examiner:
    return Examiner(world)
