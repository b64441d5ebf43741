"""Ordinary SFT of a made model, up to the level at which self-play takes over."""

import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from iris_ray.config import ScratchModel
from iris_ray.contracts import Demonstration
from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.learner.token_batch import PromptGroup
from iris_ray.scratch.model import MadeModel

CHECK_EVERY = 25
CHECK_PROMPTS = 128

Progress = Callable[[int, int, float, float | None], None]
"""Called with step, most steps, loss in nats per token, and exact match where it was measured."""


@dataclass(frozen=True)
class WarmupResult:
    steps: int
    loss: float
    """Of the last step, in nats per response token."""
    exact_match: float | None
    """Share of held-out prompts answered exactly, if `stop_at_exact_match` asked for it."""
    seconds: float


def warm_up(
    model: MadeModel,
    train: Sequence[Demonstration],
    holdout: Sequence[Demonstration],
    spec: ScratchModel,
    seed: int,
    end_token_id: int,
    progress: Progress,
) -> WarmupResult:
    """Train `model` in place on the response tokens, until `stop_at_exact_match` or `warmup_steps`."""
    begin = time.monotonic()
    scorer = SequenceScorer(model, head_apart=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=spec.warmup_learning_rate, weight_decay=0.0)
    batches = _batches(train, spec.warmup_batch_size, random.Random(seed))
    enough = spec.stop_at_exact_match
    step, loss, exact_match = 0, float("nan"), None
    model.train()
    for step in range(1, spec.warmup_steps + 1):
        mean_nll = _mean_nll(scorer, next(batches))
        mean_nll.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss = mean_nll.item()
        if enough is None or (step % CHECK_EVERY and step < spec.warmup_steps):
            progress(step, spec.warmup_steps, loss, None)
            continue
        exact_match = greedy_exact_match(model, holdout[:CHECK_PROMPTS], end_token_id)
        progress(step, spec.warmup_steps, loss, exact_match)
        if exact_match >= enough:
            break
    model.eval()
    return WarmupResult(step, loss, exact_match, time.monotonic() - begin)


@torch.inference_mode()
def greedy(
    model: MadeModel, prompts: Sequence[list[int]], max_new_tokens: int, end_token_id: int
) -> list[list[int]]:
    """Greedy responses to prompts of any lengths, as one left-padded batch. The end token is included."""
    width = max(map(len, prompts))
    pad = end_token_id  # any id: masked before the prompt, cut off after the end token
    input_ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    output = model.generate(  # type: ignore[misc]
        input_ids=input_ids,
        attention_mask=mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=end_token_id,
        pad_token_id=pad,
    )
    return [_through_end(row, end_token_id) for row in output[:, width:].tolist()]


def greedy_exact_match(model: MadeModel, demonstrations: Sequence[Demonstration], end_token_id: int) -> float:
    """Share of prompts whose greedy response is the annotated one, end token included."""
    longest = max(len(item.response_tokens) for item in demonstrations)
    written = greedy(model, [item.prompt_tokens for item in demonstrations], longest, end_token_id)
    hits = sum(item.response_tokens == tokens for item, tokens in zip(demonstrations, written, strict=True))
    return hits / len(demonstrations)


def _through_end(tokens: list[int], end_token_id: int) -> list[int]:
    return tokens[: tokens.index(end_token_id) + 1] if end_token_id in tokens else tokens


def _mean_nll(scorer: SequenceScorer, demonstrations: Sequence[Demonstration]) -> torch.Tensor:
    """Mean NLL of the response tokens, in nats."""
    groups = [PromptGroup(item.prompt_tokens, [item.response_tokens]) for item in demonstrations]
    return -scorer(scorer.lay_out(groups)).mean()


def _batches(train: Sequence[Demonstration], size: int, rng: random.Random) -> Iterator[list[Demonstration]]:
    """Endless epochs; rows of like length share a batch, so that little of it is padding."""
    while True:
        shuffled = rng.sample(train, len(train))
        for start in range(0, len(shuffled), 8 * size):
            pool = sorted(shuffled[start : start + 8 * size], key=_length)
            batches = [pool[first : first + size] for first in range(0, len(pool), size)]
            yield from rng.sample(batches, len(batches))


def _length(item: Demonstration) -> int:
    return len(item.prompt_tokens) + len(item.response_tokens)
