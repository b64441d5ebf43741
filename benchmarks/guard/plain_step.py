"""A step as one would write it first: padded sequences, prompts twice, a second model for the references."""

from collections.abc import Sequence

import torch
from torch.nn.functional import logsigmoid
from torch.nn.utils.rnn import pad_sequence

from benchmarks.guard.workload import WORKLOAD
from benchmarks.learner.model import build_model
from benchmarks.learner.workload import PAD
from iris_ray.contracts import SelfPlayPair


class PlainStep:
    """The SPIN loss (method.md, eq. 3) on a batch, in float32."""

    def __init__(self, pairs: Sequence[SelfPlayPair]):
        self.policy, self.opponent = build_model(WORKLOAD), build_model(WORKLOAD)
        self.optimizer = torch.optim.AdamW(self.policy.parameters(), lr=1e-5)
        responses = [(p, p.real_tokens) for p in pairs] + [(p, p.synthetic_tokens) for p in pairs]
        self.prompts = torch.tensor([len(pair.prompt_tokens) for pair, _ in responses])
        rows = [torch.tensor(pair.prompt_tokens + tokens) for pair, tokens in responses]
        self.lengths = torch.tensor([len(row) for row in rows])
        self.tokens = pad_sequence(rows, batch_first=True, padding_value=PAD)

    def __call__(self) -> None:
        with torch.no_grad():
            reference = self._logprobs(self.opponent)
        real, synthetic = (self._logprobs(self.policy) - reference).chunk(2)
        (-logsigmoid(0.1 * (real - synthetic)).mean()).backward()
        torch.nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def _logprobs(self, model: torch.nn.Module) -> torch.Tensor:
        place = torch.arange(self.tokens.shape[1])
        mask = place < self.lengths[:, None]
        logits = model(input_ids=self.tokens, attention_mask=mask).logits[:, :-1]
        scores = logits.log_softmax(-1).gather(-1, self.tokens[:, 1:, None])[..., 0]
        answered = mask[:, 1:] & (place[1:] >= self.prompts[:, None])
        return (scores * answered).sum(1)
