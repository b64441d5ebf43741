"""Log-probabilities of responses under a causal language model.

Shapes: B rows of T tokens, R response tokens, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from iris_ray.learner.kernels import HAS_KERNELS
from iris_ray.learner.kernels.label_logprobs import label_logprobs
from iris_ray.learner.micro_batches import micro_batches, padded_micro_batches
from iris_ray.learner.shared_prompts import caps_scores, knows_shared_prompts, use_shared_prompts
from iris_ray.learner.token_batch import PromptGroup, TokenBatch, pack, pad, repeated_length
from iris_ray.memory import LOGITS_BYTES

# Two ways to compute the same log-prob, in nats per token.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3, torch.bfloat16: 0.1}
TRIAL = [PromptGroup([3, 1, 4, 1], [[5, 9, 2], [6, 5, 3, 5, 8]]), PromptGroup([2, 7], [[1, 8, 2], [8]])]


class SequenceScorer(nn.Module):
    """Wraps any decoder model of `transformers`.

    `head_apart`: what the model does after its decoder it does to each position by itself, so only positions
    that predict a response token go through it, some at a time. `shares_prompts`: responses stand behind one
    copy of their prompt (`pack`), without padding. `fastest` finds out what a model allows.
    """

    def __init__(self, model: PreTrainedModel, *, head_apart: bool = False, shares_prompts: bool = False):
        super().__init__()
        self.model: PreTrainedModel = model
        self.head_apart = head_apart
        self.shares_prompts = shares_prompts
        if shares_prompts:
            use_shared_prompts(model)

    @classmethod
    @torch.no_grad()
    def fastest(cls, model: PreTrainedModel, max_length: int) -> "SequenceScorer":
        """The fast ways that, tried on a few tokens, give what the model itself gives."""
        if caps_scores(model):
            model.set_attn_implementation("eager")
        general = cls(model)
        expected = general(general.lay_out(TRIAL))
        apart = _agree(cls(model, head_apart=True), expected)
        before = model.config._attn_implementation
        if knows_shared_prompts(model, max_length):
            sharing = cls(model, head_apart=apart, shares_prompts=True)
            if _agree(sharing, expected):
                return sharing
            model.set_attn_implementation(before)
        return cls(model, head_apart=apart)

    def split(self, groups: Sequence[PromptGroup], max_tokens: int) -> list[list[int]]:
        """Indices of `groups` by forward pass, whose layout has at most `max_tokens` tokens."""
        if self.shares_prompts:
            sizes = [len(prompt) + sum(map(len, responses)) for prompt, responses in groups]
            return micro_batches(sizes, max_tokens)
        shapes = [(len(responses), len(prompt) + max(map(len, responses))) for prompt, responses in groups]
        return padded_micro_batches(shapes, max_tokens)

    def lay_out(self, groups: Sequence[PromptGroup], temperature: float = 1.0) -> TokenBatch:
        """Prompts and responses in the layout that `forward` takes, on the model's device."""
        batch = (pack if self.shares_prompts else pad)(groups)
        return replace(batch, temperature=temperature).to(self.model.device)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """log p of each response token given the tokens before it, in nats: (R,), float32 or wider.

        p is softmax(logits / `batch.temperature`), token by token: what is sampled from at it.
        """
        given: dict[str, Any] = {"input_ids": batch.tokens_BT, "use_cache": False}
        if batch.shared is not None:
            given |= {"position_ids": batch.positions_BT, "shared_prompts": batch.shared}
        if not self.head_apart:
            logits_RV = self.model(**given).logits.flatten(0, 1).index_select(0, batch.predictors_R)
            return _logprobs(logits_RV, batch.labels_R, batch.temperature)
        decoded = self.model.get_decoder()(**given)
        count = len(batch.labels_R)
        filling = (0, repeated_length(max(count, batch.head_rows)) - count)
        predictors_R, labels_R = (F.pad(each, filling) for each in (batch.predictors_R, batch.labels_R))
        hidden_RD = decoded.last_hidden_state.flatten(0, 1).index_select(0, predictors_R)
        return self._head_logprobs(decoded, hidden_RD, labels_R, batch.temperature)[:count]

    def _head_logprobs(
        self, decoded: ModelOutput, hidden_RD: torch.Tensor, labels_R: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        def chunk(hidden: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            # By the model's own code, whatever it does to hidden states before its head and to logits after.
            decoded.last_hidden_state = hidden[None]
            with _decoded(self.model, decoded):
                return _logprobs(self.model(use_cache=False).logits.squeeze(0), labels, temperature)

        rows = max(1, LOGITS_BYTES // (4 * self.model.config.get_text_config().vocab_size))
        if len(labels_R) <= rows:
            return chunk(hidden_RD, labels_R)
        # The backward pass computes a chunk's logits once more instead of keeping them all.
        chunks = zip(hidden_RD.split(rows), labels_R.split(rows), strict=True)
        return torch.cat([checkpoint(chunk, *part, use_reentrant=False) for part in chunks])


@contextmanager
def _decoded(model: PreTrainedModel, output: ModelOutput) -> Iterator[None]:
    """Meanwhile the decoder of `model` computes nothing and returns `output`."""
    decoder = model.get_decoder()
    before = vars(decoder).get("forward")
    decoder.forward = lambda *args, **options: output
    try:
        yield
    finally:
        del decoder.forward
        if before:
            decoder.forward = before


def _logprobs(logits_RV: torch.Tensor, labels_R: torch.Tensor, temperature: float) -> torch.Tensor:
    if logits_RV.device.type in HAS_KERNELS:
        return label_logprobs(logits_RV, labels_R, 1 / temperature)[0]
    wide_RV = logits_RV.to(torch.promote_types(logits_RV.dtype, torch.float32))
    if temperature != 1:
        wide_RV = wide_RV / temperature
    return -F.cross_entropy(wide_RV, labels_R, reduction="none")


def _agree(scorer: SequenceScorer, expected_R: torch.Tensor) -> bool:
    try:
        found_R = scorer(scorer.lay_out(TRIAL))
    except Exception:  # whatever an architecture of another make does not take
        return False
    dtype = scorer.model.dtype
    # Relative too: the trial's tokens are unlikely, so their logits are large, and so is what rounding does.
    return torch.allclose(found_R, expected_R, rtol=2 * torch.finfo(dtype).eps, atol=TOLERANCE[dtype])
