"""Log-probabilities of responses under a causal language model."""

import torch
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel

from iris_ray.learner.micro_batches import IGNORED, MicroBatch


class SequenceScorer(nn.Module):
    """Wraps any decoder model of `transformers`.

    Shapes: S sequences, T tokens, V vocabulary.
    """

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model: PreTrainedModel = model

    def forward(self, tokens_ST: torch.Tensor, labels_ST: torch.Tensor) -> torch.Tensor:
        """log p of each label given the tokens before it, in nats: (S, T), 0 where there is none."""
        # Padding stands on the right, where a causal model cannot see it: no attention mask is needed.
        first = int((labels_ST != IGNORED).any(0).nonzero()[0])
        keep = torch.arange(first - 1, tokens_ST.shape[1] - 1, device=tokens_ST.device)
        logits_SKV = self.model(input_ids=tokens_ST, use_cache=False, logits_to_keep=keep).logits
        losses = F.cross_entropy(
            logits_SKV.float().flatten(0, 1),
            labels_ST[:, first:].flatten(),
            ignore_index=IGNORED,
            reduction="none",
        )
        return F.pad(-losses.view(labels_ST.shape[0], -1), (first, 0))


def sequence_logprobs(scorer: nn.Module, batch: MicroBatch, device: torch.device) -> torch.Tensor:
    """log p(response | prompt) of each sequence, in nats: (S,) float64, summed over its tokens."""
    token_logprobs_ST = scorer(batch.tokens_ST.to(device), batch.labels_ST.to(device))
    return token_logprobs_ST.double().sum(1)
