"""One rank of the learner: exact self-play steps on a DeepSpeed engine."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel, get_scheduler

from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair, StepReport
from iris_ray.errors import IrisRayError
from iris_ray.learner.batch_rows import KINDS, BatchRows
from iris_ray.learner.engine import build_engine
from iris_ray.learner.exact_batch import gather_rows, largest_over_ranks
from iris_ray.learner.micro_batches import MicroBatch, lay_out, micro_batches
from iris_ray.learner.sequence_scorer import SequenceScorer, sequence_logprobs
from iris_ray.objectives.coefficients import effective_sample_size
from iris_ray.plugins import configured_objective

SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


@dataclass(frozen=True)
class StepResult:
    """The report, and the rows of the whole batch."""

    report: StepReport
    rows: BatchRows


class SelfPlayLearner:
    """Trains a policy against a frozen opponent.

    Needs an initialised `torch.distributed` group. The objective runs over the whole batch of a step:
    loss, gradient and trained weights do not depend on micro-batch size or number of ranks.
    """

    def __init__(self, model: PreTrainedModel, config: RunConfig, pad_token_id: int, device: torch.device):
        self.config = config
        self.pad = pad_token_id
        self.device = device
        self.objective = configured_objective(config)
        # No dropout: the two passes of a step must see the same function, and the game compares exact
        # log-probs.
        nn.Module.to(model, device, getattr(torch, config.model.dtype)).eval()
        self.opponent = SequenceScorer(copy.deepcopy(model)).eval().requires_grad_(False)
        self.engine, self.optimizer = build_engine(SequenceScorer(model), config.learner, config.model.dtype)

    def start_round(self, steps: int) -> None:
        """The current policy becomes the opponent; the learning rate's course begins anew."""
        frozen = dict(self.opponent.model.named_parameters())
        for name, weight in self.weights():
            frozen[name].data.copy_(weight)
        learner = self.config.learner
        warmup = round(learner.lr_warmup_ratio * steps)
        self.lr_scheduler = get_scheduler(SCHEDULES[learner.lr_schedule], self.optimizer, warmup, steps + 1)
        if warmup:
            self.lr_scheduler.step()  # warm-up begins at 0, where a step would train nothing

    def step(self, pairs: Sequence[SelfPlayPair], alpha: float) -> StepResult:
        """One optimiser step; `pairs` is this rank's share of the batch and may be empty.

        First the sequence log-probs of all local pairs, then the coefficients of the whole batch, then
        Σ coefficient·log p back-propagated micro-batch by micro-batch. With a single micro-batch one
        forward pass serves both.
        """
        batches = micro_batches(pairs, self.config.learner.micro_batch_size, self.pad)
        # Collectives inside a forward pass (ZeRO-3) need the same number of passes on every rank.
        passes = max(1, largest_over_ranks(len(batches)))
        idle = lay_out([([self.pad], [self.pad])], self.pad)
        batches += [(idle, [])] * (passes - len(batches))

        with torch.set_grad_enabled(passes == 1):
            logprobs = [sequence_logprobs(self.engine, batch, self.device) for batch, _ in batches]
        table, mine = gather_rows(self._rows(pairs, batches, logprobs).table)
        rows = BatchRows(table)
        loss, factors = rows.coefficients(self.objective, alpha)

        for (batch, indices), scored in zip(batches, logprobs, strict=True):
            logprob = scored if passes == 1 else sequence_logprobs(self.engine, batch, self.device)
            if indices:
                # Kind by kind, as the batch holds its sequences.
                weights = factors[mine][indices].T.flatten()[: len(logprob)].to(logprob.device)
                share = (weights * logprob).sum()
            else:
                share = 0 * logprob.sum()
            # DeepSpeed averages over ranks; the objective is a sum over all of them.
            self.engine.backward(dist.get_world_size() * share, scale_wrt_gas=False)
        learning_rate = self.optimizer.param_groups[0]["lr"]
        self.engine.step()
        self.lr_scheduler.step()

        grad_norm = self.engine.get_global_grad_norm()
        real, synthetic, _ = rows.rewards.T
        report = StepReport(
            loss=loss,
            reward_real=real.mean().item(),
            reward_synthetic=synthetic.mean().item(),
            reward_real_sd=real.std(correction=0).item(),
            reward_synthetic_sd=synthetic.std(correction=0).item(),
            ess_real=effective_sample_size(factors[:, 0]),
            ess_synthetic=effective_sample_size(factors[:, 1]),
            grad_norm=None if grad_norm is None else float(grad_norm),
            learning_rate=learning_rate,
            pairs=len(rows),
            truncated=rows.truncated,
            identical=rows.identical,
            response_tokens=rows.tokens.mean().item(),
        )
        if not math.isfinite(report.loss) or not math.isfinite(report.grad_norm or 0.0):
            raise IrisRayError(
                f"loss {report.loss} or gradient norm {report.grad_norm} is not finite. "
                "Lower learner.learning_rate, or train with model.dtype=float32."
            )
        return StepResult(report, rows)

    @torch.no_grad()
    def _rows(
        self,
        pairs: Sequence[SelfPlayPair],
        batches: list[tuple[MicroBatch, list[int]]],
        logprobs: list[torch.Tensor],
    ) -> BatchRows:
        """The rows of `pairs`, given the policy's log-probs of the batches that hold them."""
        both = torch.full((2, len(pairs), KINDS), torch.nan, dtype=torch.float64)
        for (batch, indices), logprob in zip(batches, logprobs, strict=True):
            if indices:
                reference = sequence_logprobs(self.opponent, batch, self.device)
                scores = torch.stack([logprob.detach(), reference]).cpu()
                kinds = len(logprob) // len(indices)
                both[:, indices, :kinds] = scores.view(2, kinds, len(indices)).transpose(1, 2)
        return BatchRows.of(pairs, *both)

    def weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The policy's parameters under their Hugging Face names, whole on every rank.

        A tied parameter comes once. Every rank must run through all of them (ZeRO-3 gathers).
        """
        policy: nn.Module = self.engine.module.model
        for name, parameter in policy.named_parameters():
            with deepspeed.zero.GatheredParameters([parameter], enabled=self.config.learner.zero_stage == 3):
                yield name, parameter.detach()

    @torch.no_grad()
    def token_logprobs(self, sequences: Sequence[list[int]]) -> list[list[float]]:
        """log p of every token but the first, in nats, for each token sequence."""
        batch = lay_out([(tokens[:1], tokens[1:]) for tokens in sequences], self.pad)
        logprobs_ST = self.engine(batch.tokens_ST.to(self.device), batch.labels_ST.to(self.device))
        return [
            row[1 : len(tokens)].tolist() for row, tokens in zip(logprobs_ST.cpu(), sequences, strict=True)
        ]

    def save(self, folder: str) -> None:
        """Write the policy in Hugging Face format; every rank must call it, rank 0 writes."""
        # The opponent's module lends its class and configuration: it is whole on every rank.
        weights = {name: weight.cpu().clone() for name, weight in self.weights()}
        if dist.get_rank() == 0:
            self.opponent.model.save_pretrained(folder, state_dict=weights)
