"""Texts that end a response, as the tokens that an engine without a tokenizer can look for."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from iris_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def single_tokens(texts: Sequence[str], tokenizer: "PreTrainedTokenizerBase") -> list[int]:
    """The token id of each text. Raises `ConfigError` for a text that is not exactly one token."""
    ids = [tokenizer.encode(text, add_special_tokens=False) for text in texts]
    for text, tokens in zip(texts, ids, strict=True):
        if len(tokens) != 1:
            raise ConfigError(
                f"generation.stop: {text!r} is {len(tokens)} tokens of the model's tokenizer, and only a "
                "single token can end a response. Take one of its special tokens, or let the annotated "
                "responses end where they should: written ones learn to."
            )
    return [token for (token,) in ids]
