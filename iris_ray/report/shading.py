"""How much likelier the final model finds each token than the start model does."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

from iris_ray.errors import first_line
from iris_ray.report.history import History

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from iris_ray.learner.token_batch import PromptGroup

log = logging.getLogger(__name__)

# Multiply-adds that a page takes on unasked: a few seconds on a few cores.
UNASKED = 1e12
SHORTEST = 1000  # tokens that loading a model is worth
MOST_PIECES = 300  # of one response
LEVELS = (0.05, 0.25, 1.0, 2.0)  # nats at which a colour gets stronger


@dataclass(frozen=True)
class Piece:
    """Text of a token, or of several that only together make characters, with the sum of their ratios."""

    text: str
    nats: float

    @property
    def level(self) -> int:
        """From −4 to 4, by `LEVELS`."""
        strength = sum(abs(self.nats) >= level for level in LEVELS)
        return strength if self.nats > 0 else -strength


@dataclass(frozen=True)
class Shaded:
    """A response's pieces, at most `MOST_PIECES`; `nats` and `tokens` are the whole response's."""

    pieces: list[Piece]
    nats: float
    tokens: int
    left_out: int


class NotShadedError(Exception):
    """Why the pairs are shown without log-ratios, in words for the page."""


def shade(history: History, groups: Sequence["PromptGroup"], *, asked: bool = False) -> list[list[Shaded]]:
    """Each response of each group, with log π(token) − log p(token) of final and start model, in nats.

    Computed in float32 at temperature 1. Raises `NotShadedError` where the models are not at hand, and,
    unless `asked`, where it would take long or run code that came with the model.
    """
    start, final = _start_model(history), history.folder.final
    if start is None:
        which = history.config.model.path or "that was made for the run"
        raise NotShadedError(f"the start model {which} is not on this machine.")
    if not (final / "config.json").exists():
        raise NotShadedError("there is no final model yet.")
    tokens = sum(len(group.prompt) + sum(map(len, group.responses)) for group in groups)
    parameters = history.summary.get("model", {}).get("parameters", 0)
    again = f"iris-ray report {history.folder.path} --score"
    if not asked and 2 * parameters * max(tokens, SHORTEST) > UNASKED:
        raise NotShadedError(
            f"scoring them with two models of {parameters / 1e9:.1f} B parameters takes a while. "
            f"To have it done: {again}"
        )
    if not asked and history.config.model.trust_remote_code:
        raise NotShadedError(f"the model brings code of its own. To run it for this: {again}")
    try:
        tokenizer = _tokenizer(history)
        old, new = (_logprobs(path, groups, history) for path in (start, final))
        return [
            [
                _shaded(tokenizer, response, [after - before for before, after in zip(*scores, strict=True)])
                for response, *scores in zip(group.responses, *both, strict=True)
            ]
            for group, *both in zip(groups, old, new, strict=True)
        ]
    except Exception as error:  # of a model's or tokenizer's files; the page is worth having without it
        log.info("no log-ratios in the report", exc_info=True)
        raise NotShadedError(f"the models could not be scored with: {first_line(error)}") from error


def _start_model(history: History) -> Path | None:
    """Its folder, be it that of the hub's cache: a page is no reason to fetch a model."""
    made, given = history.folder.start, history.config.model.path
    if made.is_dir():
        return made
    if given is None or Path(given).is_dir():
        return Path(given) if given else None
    try:
        return Path(snapshot_download(given, local_files_only=True))
    except (LocalEntryNotFoundError, HFValidationError):
        return None


def _tokenizer(history: History) -> "PreTrainedTokenizerBase":
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(
        history.folder.final, trust_remote_code=history.config.model.trust_remote_code
    )


def _logprobs(path: Path, groups: Sequence["PromptGroup"], history: History) -> list[list[list[float]]]:
    """log p of each token of each response of each group under the model in `path`, in nats."""
    import torch
    from transformers import AutoModelForCausalLM

    from iris_ray.learner.sequence_scorer import SequenceScorer

    model: Any = AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float32, trust_remote_code=history.config.model.trust_remote_code
    )
    scorer = SequenceScorer.fastest(model.eval(), history.config.max_length)
    found = []
    with torch.no_grad():
        for group in groups:  # one at a time: a large vocabulary's logits take room
            scores = scorer(scorer.lay_out([group]))
            found.append([part.tolist() for part in scores.split([len(r) for r in group.responses])])
    return found


def _shaded(tokenizer: "PreTrainedTokenizerBase", tokens: list[int], ratios: list[float]) -> Shaded:
    shown = tokens[:MOST_PIECES]
    return Shaded(
        pieces=list(_pieces(tokenizer, shown, ratios[:MOST_PIECES])),
        nats=sum(ratios),
        tokens=len(tokens),
        left_out=len(tokens) - len(shown),
    )


def _pieces(tokenizer: "PreTrainedTokenizerBase", tokens: list[int], ratios: list[float]) -> Iterator[Piece]:
    """Tokens as they read one behind the other: a token alone may lose its space, or be half a character."""
    before = begin = 0
    for end in range(1, len(tokens) + 1):
        context = tokenizer.decode(tokens[before:begin])
        text = str(tokenizer.decode(tokens[before:end]))[len(context) :]
        if text.endswith("\N{REPLACEMENT CHARACTER}") and end < len(tokens):
            continue
        yield Piece(text, sum(ratios[begin:end]))
        before, begin = begin, end
