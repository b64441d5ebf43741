"""The one rule from chat messages to token ids, for training and held-out data alike."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from iris_ray.config import Data
from iris_ray.data.rows import BadRow, Message
from iris_ray.errors import ConfigError, ModelError
from iris_ray.generation.stop_tokens import single_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Encoded:
    """One row as the model reads it.

    `response_tokens` ends with the end token, or a text of `generation.stop`, and holds no other.
    """

    prompt_text: str
    prompt_tokens: list[int]
    response_tokens: list[int]


class Encoder:
    """Turns chat messages into prompt and response tokens.

    Annotated and synthetic responses follow exactly the same prompt tokens. Behind a chat template a
    response is tokenised as it stands there, as the model would write it: alone, the tokenizers of Llama and
    Mistral would begin it with a space, and every annotated response could be told by that. Where prompt and
    response would share a token, and without a template, they are tokenised apart. An annotated response
    ends where a written one would: at the first end token or text of `stop` (`generation.stop`).

    Raises `ModelError` if the tokenizer has no end token, or, where `data.chat_template` asks for one, no
    chat template or one that writes a prompt in two ways. `ConfigError` for options that the template does
    not know, and for a `stop` that the tokenizer does not have or that lacks the template's end.
    """

    def __init__(self, tokenizer: "PreTrainedTokenizerBase", data: Data, stop: Sequence[str] = ()) -> None:
        self._tokenizer = tokenizer
        self._data = data
        if tokenizer.eos_token_id is None:
            raise ModelError(
                "model: the tokenizer has no end token (eos_token). Choose a model whose tokenizer sets one."
            )
        if data.chat_template and not tokenizer.chat_template:
            raise ModelError(
                "data.chat_template=true: the tokenizer has no chat template. Set data.chat_template=false "
                "to feed prompts as they are, or choose an instruct model."
            )
        for option in data.chat_template_options:
            if option not in str(tokenizer.chat_template):
                raise ConfigError(
                    f"data.chat_template_options: {option!r} does not occur in the model's chat template. "
                    "Leave it out, or correct its name."
                )
        self._ends = {tokenizer.eos_token_id, *single_tokens(stop, tokenizer)}
        if data.chat_template:
            self._check_template()

    def __call__(self, messages: list[Message]) -> Encoded:
        """Encode one row. Raises `BadRow` if it does not fit the limits or the template."""
        prompt, response = self._render(messages) if self._data.chat_template else _plain(messages)
        prompt_tokens, response_tokens = self._tokens(prompt, response)
        end = next((at for at, token in enumerate(response_tokens) if token in self._ends), None)
        if end is None:
            response_tokens.append(self._tokenizer.eos_token_id)
        else:  # templates may write more behind it, such as a newline
            response_tokens = response_tokens[: end + 1]
        for name, tokens in {"prompt": prompt_tokens, "response": response_tokens}.items():
            limit = getattr(self._data, f"max_{name}_tokens")
            if len(tokens) > limit:
                raise BadRow(f"{name} is longer than data.max_{name}_tokens={limit}")
        return Encoded(prompt, prompt_tokens, response_tokens)

    def _tokens(self, prompt: str, response: str) -> tuple[list[int], list[int]]:
        encode = partial(self._tokenizer.encode, verbose=False)
        if self._data.chat_template:  # which writes its special tokens itself
            prompt_tokens = encode(prompt, add_special_tokens=False)
            together = encode(prompt + response, add_special_tokens=False)
            if together[: len(prompt_tokens)] == prompt_tokens:
                return prompt_tokens, together[len(prompt_tokens) :]
        else:  # a plain prompt gets the tokenizer's, such as BOS
            prompt_tokens = encode(prompt)
        return prompt_tokens, encode(response, add_special_tokens=False)

    def _render(self, messages: list[Message]) -> tuple[str, str]:
        prompt, full = self._texts(messages)
        if not full.startswith(prompt):
            raise BadRow("the chat template writes another prompt for it alone than with its response")
        response = full[len(prompt) :]
        if messages[-1]["content"].strip() not in response:
            raise BadRow("the chat template changes the response, or leaves out a part of it")
        return prompt, response

    def _texts(self, messages: list[Message]) -> tuple[str, str]:
        """Of the prompt alone, and of prompt and response."""
        try:
            apply: Any = self._tokenizer.apply_chat_template
            template = partial(apply, **self._data.chat_template_options, tokenize=False)
            return str(template(messages[:-1], add_generation_prompt=True)), str(template(messages))
        except TemplateError as error:
            raise BadRow(f"the chat template refuses it: {error}") from error

    def _check_template(self) -> None:
        """Raise `ModelError` if the template writes any prompt in two ways.

        `ConfigError` if it ends a turn with a special token that ends no response: written ones would go on
        behind it, and the learner could tell the two kinds apart by that.
        """
        said = "Fine."
        with suppress(BadRow):  # a template that refuses this may take the rows
            turns = [{"role": "user", "content": "How are you?"}, {"role": "assistant", "content": said}]
            prompt, full = self._texts(turns)
            if not full.startswith(prompt):
                raise ModelError(
                    "data.chat_template=true: the chat template writes one beginning for the prompt alone "
                    f"and another for prompt and response. The prompt alone ends with {prompt[-40:]!r}. Set "
                    "data.chat_template=false, or choose a model with another template."
                )
            behind = self._render(turns)[1].rpartition(said)[2]
            added = self._tokenizer.added_tokens_decoder
            tokens = self._tokenizer.encode(behind, add_special_tokens=False)
            end = next((token for token in tokens if token in added and added[token].special), None)
            if end is not None and end not in self._ends:
                text = str(added[end])
                raise ConfigError(
                    f"generation.stop: the chat template ends a turn with {text!r}, but written responses "
                    f"would end with {self._tokenizer.eos_token!r} alone. Add {text!r} to generation.stop."
                )


def _plain(messages: list[Message]) -> tuple[str, str]:
    if len(messages) != 2:
        raise BadRow("has several turns, which needs data.chat_template=true")
    return messages[0]["content"], messages[1]["content"]
