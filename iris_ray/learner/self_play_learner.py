"""One rank of the learner: exact self-play steps on a DeepSpeed engine."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain

import deepspeed
import torch
import torch.distributed as dist
from torch import nn
from transformers import PreTrainedModel

from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair, StepReport
from iris_ray.errors import IrisRayError
from iris_ray.learner.batch_rows import KINDS, BatchRows, given_references
from iris_ray.learner.engine import build_engine, prepare_model, take_step
from iris_ray.learner.exact_batch import gather_rows, largest_over_ranks
from iris_ray.learner.optimizer import round_scheduler
from iris_ray.learner.players import build_players
from iris_ray.learner.sequence_scorer import TRIAL
from iris_ray.learner.split_parameters import are_held
from iris_ray.learner.stopwatch import Stopwatch
from iris_ray.learner.token_batch import PromptGroup, TokenBatch
from iris_ray.objectives.coefficients import effective_sample_size
from iris_ray.plugins import configured_objective
from iris_ray.precision import widen_products

IDLE = PromptGroup([0], [[0]])  # what a rank without pairs passes forward, for the sake of the others


@dataclass(frozen=True)
class StepResult:
    """The report, and the rows of the whole batch."""

    report: StepReport
    rows: BatchRows


class SelfPlayLearner:
    """Trains a policy against a frozen opponent.

    log p of the opponent is computed here, once for each pair, or comes with the pairs, as
    `learner.reference` says. Needs an initialised `torch.distributed` group. The objective runs over the
    whole batch of a step: loss, gradient and trained weights do not depend on micro-batch size or number of
    ranks.
    """

    def __init__(self, model: PreTrainedModel, config: RunConfig, device: torch.device):
        self.config = config
        self.objective = configured_objective(config)  # of the first iteration
        prepare_model(model, config.learner, config.model.dtype)  # before it has to fit on the device
        # No dropout: the two passes of a step must see the same function, and the game compares exact
        # log-probs.
        nn.Module.to(model, device).eval()
        widen_products(model)
        self.players = build_players(model, config)
        self.references: dict[int, torch.Tensor] = {}  # of each pair id, in this round
        self.skipped_in_a_row = 0
        self.stopwatch = Stopwatch(device)
        self.before_update: Callable[[], None] = lambda: None  # called when a step is about to change weights
        self.engine, self.optimizer = build_engine(self.players.scorer, config.learner, config.model.dtype)
        if config.learner.compile and config.learner.zero_stage < 3:
            self._compile_now()

    def gather(self, parameters: Sequence[torch.Tensor]) -> AbstractContextManager:
        """Makes split parameters whole while it is entered, and writes back what rank 0 changed."""
        return self._gathered(parameters, modifier_rank=0)

    def gather_to_read(self, parameters: Sequence[torch.Tensor]) -> AbstractContextManager:
        """The same for parameters that stay as they are."""
        return self._gathered(parameters, modifier_rank=None)

    def _gathered(
        self, parameters: Sequence[torch.Tensor], modifier_rank: int | None
    ) -> AbstractContextManager:
        if self.config.learner.zero_stage < 3:
            return nullcontext()
        if are_held(parameters):
            # After a forward pass alone, the engine still waits for what the backward pass would need first.
            for engine in (self.engine, self.players.frozen):
                if engine is not None:
                    engine.optimizer.empty_partition_cache()
        gathered: AbstractContextManager = deepspeed.zero.GatheredParameters(
            parameters, modifier_rank=modifier_rank
        )
        return gathered

    def _compile_now(self) -> None:
        """Have layers compiled while generators start, not in the first step. Leaves no gradient behind."""
        # A row as long as nothing else of a model: what is equal here would be taken to be equal for ever.
        batch = self.players.scorer.lay_out(9 * TRIAL)
        if self.config.learner.reference == "learner":
            with torch.no_grad(), self.players.opponent_scorer(self.engine) as opponent:
                opponent(batch)
        trained = [parameter for parameter in self.players.model.parameters() if parameter.requires_grad]
        torch.autograd.grad(self.players.scorer(batch).sum(), trained, allow_unused=True)

    def start_round(self, iteration: int, steps: int) -> None:
        """The current policy becomes the opponent; the learning rate's course begins anew."""
        self.objective = configured_objective(self.config, iteration)
        self.players.freeze(self.gather)
        self.references.clear()
        self.lr_scheduler = round_scheduler(self.optimizer, self.config.learner, iteration, steps)

    def step(self, pairs: Sequence[SelfPlayPair], alpha: float) -> StepResult:
        """One optimiser step; `pairs` is this rank's share of the batch and may be empty.

        First the sequence log-probs of all local pairs, then the coefficients of the whole batch, then
        Σ coefficient·log p back-propagated micro-batch by micro-batch. With a single micro-batch one
        forward pass serves both.
        """
        with self.stopwatch("score"):
            references = self._references(pairs)
        groups, batches = self._passes(pairs)
        one_pass = len(batches) == 1
        logprobs = torch.full((len(pairs), KINDS), torch.nan, dtype=torch.float64)
        with self.stopwatch("forward"), torch.set_grad_enabled(one_pass):
            sums = [batch.sum_by_sequence(self.engine(batch)) for batch in batches]
            for group, scores_S in zip(groups, sums, strict=False):
                _put(logprobs, group, scores_S.detach())
        table, mine = gather_rows(BatchRows.of(pairs, logprobs, references).table)
        rows = BatchRows(table)
        if self.config.learner.reference == "learner":
            ids = map(self._pair_id, rows.prompt_ids, rows.replicas)
            self.references |= zip(ids, rows.references, strict=True)
        loss, factors = rows.coefficients(self.objective, alpha)

        learning_rate = self.optimizer.param_groups[0]["lr"]
        grad_norm = None
        if math.isfinite(loss):
            for index, batch in enumerate(batches):
                with self.stopwatch("forward"):
                    scores_S = sums[index] if one_pass else batch.sum_by_sequence(self.engine(batch))
                if index < len(groups):
                    kinds = batch.sequences // len(groups[index])
                    weights_S = factors[mine][groups[index], :kinds].flatten().to(scores_S.device)
                    share = (weights_S * scores_S).sum()
                else:
                    share = 0 * scores_S.sum()
                with self.stopwatch("backward"):
                    # DeepSpeed averages over ranks; the objective is a sum over all of them.
                    self.engine.backward(dist.get_world_size() * share, scale_wrt_gas=False)
            self.before_update()
            with self.stopwatch("optimizer"):
                grad_norm = take_step(self.engine).grad_norm
        self.lr_scheduler.step()
        report = _report(rows, loss, factors, grad_norm, learning_rate)
        self._count_skipped(report)
        return StepResult(report, rows)

    def _count_skipped(self, report: StepReport) -> None:
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if report.skipped else 0
        if self.skipped_in_a_row > self.config.learner.max_skipped_steps:
            raise IrisRayError(
                f"{self.skipped_in_a_row} steps in a row were skipped because loss or gradient was not "
                "finite. Lower learner.learning_rate, or train with model.dtype=float32; "
                "learner.max_skipped_steps says how many may be skipped."
            )

    def _references(self, pairs: Sequence[SelfPlayPair]) -> torch.Tensor:
        """Sequence log-probs of `pairs` under the opponent, (N, KINDS) float64, NaN where there is none."""
        if self.config.learner.reference == "generator":
            return given_references(pairs)
        self.score_references(pairs)
        rows = [self.references[self._pair_id(pair.prompt_id, pair.replica)] for pair in pairs]
        return torch.stack(rows) if rows else torch.empty(0, KINDS, dtype=torch.float64)

    @torch.no_grad()
    def score_references(self, pairs: Sequence[SelfPlayPair]) -> None:
        """Have the opponent score those of `pairs` that it has not scored in this round yet.

        Every step does this for its own pairs, so each is scored once, whatever the number of passes.
        Scored is the distribution that was sampled from, softmax(logits / `generation.temperature`).
        """
        by_id = {self._pair_id(pair.prompt_id, pair.replica): pair for pair in pairs}
        ids = [pair_id for pair_id in by_id if pair_id not in self.references]
        new = [by_id[pair_id] for pair_id in ids]
        scores = torch.full((len(new), KINDS), torch.nan, dtype=torch.float64)
        groups, batches = self._passes(new, self.config.generation.temperature)
        with self.players.opponent_scorer(self.engine) as opponent:
            for index, batch in enumerate(batches):
                scores_S = batch.sum_by_sequence(opponent(batch))
                if index < len(groups):
                    _put(scores, groups[index], scores_S)
        self.references |= zip(ids, scores, strict=True)

    def _pair_id(self, prompt_id: int, replica: int) -> int:
        return prompt_id * self.config.generation.n + replica

    def _passes(
        self, pairs: Sequence[SelfPlayPair], temperature: float = 1.0
    ) -> tuple[list[list[int]], list[TokenBatch]]:
        """`pairs` in micro-batches, and their layouts, followed by idle ones up to other ranks' number.

        Collectives inside a forward pass (ZeRO-3) need the same number of passes on every rank, and of
        chunks of response tokens that go through the head.
        """
        prompts = [PromptGroup(pair.prompt_tokens, pair.responses) for pair in pairs]
        groups = self.players.scorer.split(prompts, self.config.learner.micro_batch_tokens)
        lay_out = partial(self.players.scorer.lay_out, temperature=temperature)
        batches = [lay_out([prompts[i] for i in group]) for group in groups]
        rows = largest_over_ranks([len(batch.labels_R) for batch in batches])
        batches += [lay_out([IDLE])] * (len(rows) - len(groups))
        if self.config.learner.zero_stage == 3:
            batches = [replace(batch, head_rows=most) for batch, most in zip(batches, rows, strict=True)]
        return groups, batches

    def published_weights(self, opponent: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """What generators need of the policy, or of the opponent: its `weights`, and a model's buffers.

        Under the names, and in the shapes, that vLLM loads.
        """
        weights = chain(self.weights(opponent), self.players.published_buffers())
        return self.players.as_checkpoints(weights)

    def weights(self, opponent: bool = False) -> Iterator[tuple[str, torch.Tensor]]:
        """The policy, or the opponent, whole on every rank: all weights, or those of the adapter.

        A tied parameter comes once, and may live until the next only. Every rank must run through all of
        them (ZeRO-3 gathers). Raises `IrisRayError` if no opponent is kept (`players.keeps_opponent`).
        """
        players = self.players
        for name, parameter in players.opponent_weights() if opponent else players.policy_weights():
            with self.gather_to_read([parameter]):
                yield name, parameter.detach()

    def set_opponent(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Replace the opponent's weights by those that `weights(opponent=True)` gave; every rank calls it."""
        self.players.set_opponent(weights, self.gather)

    @torch.no_grad()
    def token_logprobs(self, sequences: Sequence[list[int]], opponent: bool = False) -> list[list[float]]:
        """log p of every token but the first at temperature 1, in nats, for each token sequence.

        Every rank must call it. `opponent` raises as in `weights`.
        """
        groups = [PromptGroup(tokens[:1], [tokens[1:]]) for tokens in sequences]
        batch = self.players.scorer.lay_out(groups)
        with self.players.opponent_scorer(self.engine) if opponent else nullcontext(self.engine) as scorer:
            logprobs = scorer(batch)
        return [part.tolist() for part in logprobs.cpu().split([len(tokens) - 1 for tokens in sequences])]

    def save(self, folder: str) -> None:
        """Write the policy as a whole model in Hugging Face format; every rank calls it, rank 0 writes."""
        weights = {}
        for name, weight in self.players.model_weights(self.gather_to_read):
            if dist.get_rank() == 0:
                weights[name] = weight.cpu().clone()
        if dist.get_rank() == 0:
            self.players.model.save_pretrained(folder, state_dict=weights)


def _report(
    rows: BatchRows, loss: float, factors: torch.Tensor, grad_norm: float | None, learning_rate: float
) -> StepReport:
    real, synthetic, _ = rows.rewards.T
    distances = rows.rewards[:, :2].abs() / rows.tokens
    return StepReport(
        loss=loss,
        reward_real=real.mean().item(),
        reward_synthetic=synthetic.mean().item(),
        reward_real_sd=real.std(correction=0).item(),
        reward_synthetic_sd=synthetic.std(correction=0).item(),
        ess_real=effective_sample_size(factors[:, 0]),
        ess_synthetic=effective_sample_size(factors[:, 1]),
        grad_norm=grad_norm,
        skipped=grad_norm is None,
        learning_rate=learning_rate,
        pairs=len(rows),
        truncated=rows.truncated,
        identical=rows.identical,
        response_tokens=rows.tokens.mean().item(),
        abs_reward_mean=distances.mean().item(),
        abs_reward_max=distances.max().item(),
    )


def _put(table: torch.Tensor, rows: list[int], scores_S: torch.Tensor) -> None:
    """Write the scores of some pairs' sequences into their rows of `table` (N, KINDS)."""
    by_pair = scores_S.cpu().view(len(rows), -1)
    table[rows, : by_pair.shape[1]] = by_pair
