"""Qwen2's tokenizer trained anew on the data at hand, with a ChatML template."""

from collections.abc import Iterable, Iterator

from transformers import PreTrainedTokenizerFast, Qwen2Tokenizer

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer of at most `vocab_size` entries, the end token `<|im_end|>` being its eos.

    Beside a Qwen2 model `AutoTokenizer` always puts Qwen2's rules (NFC, every digit alone) around a saved
    vocabulary. So the training keeps to these rules; any others would be lost unseen on loading.
    """
    untrained = Qwen2Tokenizer(
        eos_token=END, pad_token=PAD, extra_special_tokens=[START], chat_template=CHAT_TEMPLATE
    )
    return untrained.train_new_from_iterator(_with_roles(texts), vocab_size, show_progress=False)


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
    """The template puts role names around every text: counted as often, they become single tokens."""
    for text in texts:
        yield text
        yield "user\nassistant\n"
