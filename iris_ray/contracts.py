"""What travels between the parts. Plain data: no torch, no Ray."""

from dataclasses import dataclass, field
from typing import Literal, NamedTuple

FinishReason = Literal["stop", "length"]
Order = Literal["pause", "resume", "checkpoint", "stop"]
"""What a person may ask of a run's learner: it obeys before its next step."""


@dataclass(frozen=True)
class Demonstration:
    """An annotated prompt–response pair. Token ids; the response ends with the end token."""

    prompt_id: int
    prompt_tokens: list[int]
    response_tokens: list[int]


@dataclass(frozen=True)
class Question:
    """A prompt to answer greedily, and responses whose log p is asked for. Token ids.

    The answer has `max_tokens` at most, by default `data.max_response_tokens`; 0 asks for none.
    """

    prompt: list[int]
    likely: list[list[int]]
    max_tokens: int | None = None


@dataclass(frozen=True)
class Answer:
    """A greedy answer to a question, as token ids, end token included where reached.

    `logprob` is its log p, `logprobs` those of the responses that were asked for, in nats, summed over
    tokens; None and empty unless there were such.
    """

    tokens: list[int]
    logprob: float | None
    logprobs: list[float]


class VersionSpan(NamedTuple):
    """Tokens of a response that one weights version wrote, one behind the other."""

    version: int
    tokens: int


@dataclass(frozen=True)
class SelfPlayPair:
    """An annotated response y beside the response y' that an opponent wrote to the same prompt.

    `synthetic_tokens` ends with the end token, or a text of `generation.stop`, when `finish_reason` is
    `stop`; a response cut at the length limit (`length`) has none and is trained on as it is.
    `version_spans` are the weights versions that wrote it, in order; with `generation.in_flight: finish` it
    is one. `version` is the opponent's, with which the pair is compared: the last of them, or a newer one
    that came before the finished response was scored. `replica` counts the responses to the same prompt
    from 0. `initial_tokens` is what the first model wrote, for objectives that compare with it; empty for
    all others, and in the first iteration, where y' is that very response.

    `reference` holds log p of y and y' under the opponent at temperature 1, in nats, each summed over the
    response's tokens, the last one included and the prompt left out; empty where the learner computes them
    (`learner.reference`).
    """

    iteration: int
    prompt_id: int
    prompt_tokens: list[int]
    real_tokens: list[int]
    synthetic_tokens: list[int]
    finish_reason: FinishReason
    version: int
    version_spans: list[VersionSpan]
    initial_tokens: list[int] = field(default_factory=list)
    replica: int = 0
    reference: list[float] = field(default_factory=list)

    @property
    def oldest_version(self) -> int:
        """What staleness counts from."""
        return min(span.version for span in self.version_spans)

    @property
    def num_tokens(self) -> int:
        """Tokens of the prompt, counted once, and of all responses."""
        return len(self.prompt_tokens) + sum(map(len, self.responses))

    @property
    def responses(self) -> list[list[int]]:
        """y, y' and, where there is one, the first model's response."""
        responses = [self.real_tokens, self.synthetic_tokens]
        return [*responses, self.initial_tokens] if self.initial_tokens else responses


@dataclass(frozen=True)
class StepReport:
    """One optimiser step over the batch of all ranks.

    Rewards are sequence log-ratios in nats, `*_sd` their standard deviations over the batch, `ess_*`
    effective sample sizes in sequences, `response_tokens` the mean length. `truncated` counts pairs whose
    synthetic response was cut, `identical` those in which it is the annotated one. `abs_reward_*` are mean
    and maximum of |reward| / length over all responses, in nats per token: on the first step against
    weights that the policy still equals, the mismatch of the two scorings. `grad_norm` is before
    clipping. A step is `skipped`, and has no `grad_norm`, if loss or gradient was not finite.
    """

    loss: float
    reward_real: float
    reward_synthetic: float
    reward_real_sd: float
    reward_synthetic_sd: float
    ess_real: float
    ess_synthetic: float
    grad_norm: float | None
    skipped: bool
    learning_rate: float
    pairs: int
    truncated: int
    identical: int
    response_tokens: float
    abs_reward_mean: float = 0.0
    abs_reward_max: float = 0.0


# What a rank of the learner does: wait for a batch to be written, fetch it, score references, compute
# forward, backward and the update, publish weights, save a checkpoint, and wait between two rounds for
# generators to load and for the evaluation to end.
PHASES = (
    "wait",
    "fetch",
    "score",
    "forward",
    "backward",
    "optimizer",
    "publish",
    "checkpoint",
    "between",
    "other",
)


@dataclass(frozen=True)
class Update:
    """A finished weight update of a generator.

    `seconds` in all, `paused_seconds` in which generation stood still, and the proof: the largest
    difference between its log-probs and the learner's, in nats per token.
    """

    generator: str
    version: int
    seconds: float
    paused_seconds: float
    parity_max_abs_diff: float
