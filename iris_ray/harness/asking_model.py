"""A model for lm-eval that answers through whatever answers questions: the generators of a run."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs, postprocess_generated_text

from iris_ray.contracts import Answer, Question
from iris_ray.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class AskingModel(TemplateLM):
    """`ask` answers questions greedily; prompt and answer have `window` tokens at most.

    Longer prompts lose their beginning, as with lm-eval's own models. Conversations go through the
    tokenizer's chat template with `template_options`.
    """

    def __init__(
        self,
        tokenizer: "PreTrainedTokenizerBase",
        window: int,
        ask: Callable[[list[Question]], Sequence[Answer]],
        template_options: dict[str, Any] | None = None,
    ):
        super().__init__()
        self.tokenizer: Any = tokenizer
        self.window = window
        self.ask = ask
        self.template_options = template_options or {}

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def tokenizer_name(self) -> str:
        return self.tokenizer.name_or_path.replace("/", "__")

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            **self.template_options,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        begins = self.tokenizer.bos_token and string.startswith(self.tokenizer.bos_token)
        special = not begins if add_special_tokens is None else add_special_tokens
        return self.tokenizer.encode(string, add_special_tokens=special)

    def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
        questions, stops = [], []
        for text, options in (request.args for request in requests):
            wanted = normalize_gen_kwargs(options)
            if wanted["temperature"] > 0:
                raise ConfigError("evaluation.tasks: only tasks with greedy answers, and this one samples.")
            tokens, most = maybe_truncate(self.tok_encode(text), wanted["max_gen_toks"], self.window)
            questions.append(Question(tokens, [], most))
            stops.append(wanted["until"])
        texts = self.tokenizer.batch_decode(
            [answer.tokens for answer in self.ask(questions)], skip_special_tokens=True
        )
        return [postprocess_generated_text(text, stop, None) for text, stop in zip(texts, stops, strict=True)]

    def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
        questions = [
            Question(context[-(self.window - len(continuation)) :], [continuation], 0)
            for _, context, continuation in requests
        ]
        # Whether it is also what the model would write is not known, and choices do not ask for it.
        return [(answer.logprobs[0], False) for answer in self.ask(questions)]

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
        raise ConfigError("evaluation.tasks: no tasks of perplexity. `iris-ray eval` has them.")
