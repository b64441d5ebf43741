"""What a step knows of each pair of its batch, over all ranks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from iris_ray.contracts import SelfPlayPair
from iris_ray.errors import IrisRayError
from iris_ray.gap import PairMeans
from iris_ray.objectives import LogProbObjective, Objective, build_objective, coefficients
from iris_ray.objectives.registry import RESPONSES

KINDS = len(RESPONSES)


def given_references(pairs: Sequence[SelfPlayPair]) -> torch.Tensor:
    """The opponent's sequence log-probs that `pairs` bring, (N, KINDS) float64, NaN where there is none.

    Raises `IrisRayError` if a pair does not bring one for each of its responses.
    """
    references = torch.full((len(pairs), KINDS), torch.nan, dtype=torch.float64)
    for row, pair in zip(references, pairs, strict=True):
        if len(pair.reference) != len(pair.responses):
            raise IrisRayError(
                f"the pair of prompt {pair.prompt_id} has {len(pair.reference)} reference log-probs for "
                f"{len(pair.responses)} responses. With learner.reference=generator the generator that "
                "wrote the pair must score them; with learner.reference=learner nothing is asked of it."
            )
        row[: len(pair.reference)] = torch.tensor(pair.reference, dtype=torch.float64)
    return references


@dataclass(frozen=True)
class BatchRows:
    """`table` (N, 12) float64, one row a pair.

    Its columns in groups: sequence log-probs in nats under the policy and under the opponent, of the
    annotated, the synthetic and the first model's response (NaN where there is none); the ids of
    prompt and replica; lengths of the first two responses in tokens; whether y' was cut; whether y' is y.
    """

    table: torch.Tensor

    @classmethod
    def of(
        cls, pairs: Sequence[SelfPlayPair], logprobs: torch.Tensor, references: torch.Tensor
    ) -> "BatchRows":
        """Rows of `pairs` from their log-probs under policy and opponent, (N, 3) each."""
        facts = [
            (
                pair.prompt_id,
                pair.replica,
                len(pair.real_tokens),
                len(pair.synthetic_tokens),
                pair.finish_reason == "length",
                pair.synthetic_tokens == pair.real_tokens,
            )
            for pair in pairs
        ]
        return cls(torch.cat([logprobs, references, torch.tensor(facts, dtype=torch.float64).view(-1, 6)], 1))

    def __len__(self) -> int:
        return len(self.table)

    @property
    def logprobs(self) -> torch.Tensor:
        """Sequence log-probs under the policy, (N, 3)."""
        return self.table[:, :KINDS]

    @property
    def references(self) -> torch.Tensor:
        """Sequence log-probs under the opponent, (N, 3)."""
        return self.table[:, KINDS : 2 * KINDS]

    @property
    def rewards(self) -> torch.Tensor:
        """Sequence log-ratios, (N, 3)."""
        return self.logprobs - self.references

    @property
    def prompt_ids(self) -> list[int]:
        """The prompts' ids."""
        return self.table[:, -6].long().tolist()

    @property
    def replicas(self) -> list[int]:
        """Which of the responses to its prompt each y' is, from 0."""
        return self.table[:, -5].long().tolist()

    @property
    def tokens(self) -> torch.Tensor:
        """Lengths of annotated and synthetic responses, (N, 2)."""
        return self.table[:, -4:-2]

    @property
    def truncated(self) -> int:
        """Pairs whose synthetic response was cut."""
        return int(self.table[:, -2].sum())

    @property
    def identical(self) -> int:
        """Pairs whose synthetic response is the annotated one."""
        return int(self.table[:, -1].sum())

    def coefficients(self, objective: Objective, alpha: float) -> tuple[float, torch.Tensor]:
        """Loss of the whole batch, and the factor (N, 3) of each sequence's ∇log p_θ."""
        scores = self.logprobs if isinstance(objective, LogProbObjective) else self.rewards
        present = KINDS - int(scores[:, -1].isnan().all())
        whole = coefficients(objective, *scores.T[:present], alpha=alpha)
        absent = torch.zeros(len(self), dtype=torch.float64)
        factors = (absent if part is None else part for part in (whole.real, whole.synthetic, whole.initial))
        return whole.loss, torch.stack(list(factors), 1)

    def means(self, objective: Objective, alpha: float) -> PairMeans:
        """Means over all rows; losses run over all of them at once."""
        rewards, references, tokens = (
            table.mean(0).tolist() for table in (self.rewards, self.references, self.tokens)
        )
        return PairMeans(
            reward_real=rewards[0],
            reward_synthetic=rewards[1],
            reference_real=references[0],
            reference_synthetic=references[1],
            tokens_real=tokens[0],
            tokens_synthetic=tokens[1],
            loss=self.coefficients(objective, alpha)[0],
            iris_loss=self.coefficients(build_objective("iris"), alpha)[0],
            alpha=alpha,
        )
