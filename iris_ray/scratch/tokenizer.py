"""Tokenizers of known kinds trained anew on the data at hand, each with the chat template of its kind."""

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

START, END, PAD = "<|im_start|>", "<|im_end|>", "<|endoftext|>"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]  # what Llama's kind writes for characters it does not know

CHATML = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ZEPHYR = (
    "{% for message in messages %}"
    "<|{{ message['role'] }}|>\n{{ message['content'] }}{{ eos_token }}\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)


def train_tokenizer(
    texts: Iterable[str], vocab_size: int, architecture: str | None = None
) -> PreTrainedTokenizerFast:
    """A BPE tokenizer of at most `vocab_size` entries with a chat template, as `architecture` goes with it.

    `qwen2`, which is the default: byte-level, ChatML, the end token is `<|im_end|>`. `mistral`: Llama's kind,
    Zephyr's roles, which are plain text, and `</s>`.
    """
    return (_llama if architecture == "mistral" else _qwen2)(_with_roles(texts), vocab_size)


def _qwen2(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    # Beside a Qwen2 model `AutoTokenizer` always puts Qwen2's rules (NFC, every digit alone) around a saved
    # vocabulary. So the training keeps to these rules; any others would be lost unseen on loading.
    untrained = Qwen2Tokenizer(
        eos_token=END, pad_token=PAD, extra_special_tokens=[START], chat_template=CHATML
    )
    return untrained.train_new_from_iterator(texts, vocab_size, show_progress=False)


def _llama(texts: Iterator[str], vocab_size: int) -> PreTrainedTokenizerFast:
    # `train_new_from_iterator` would leave out the bytes, and what is not in the texts would vanish.
    bpe = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    words = [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Metaspace(prepend_scheme="first")]
    bpe.pre_tokenizer = pre_tokenizers.Sequence(words)
    special = ["<unk>", "<s>", "</s>", *BYTES]
    bpe.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=special, show_progress=False)
    )
    trained = json.loads(bpe.to_str())["model"]
    merges = [tuple(pair) for pair in trained["merges"]]
    return LlamaTokenizer(trained["vocab"], merges, pad_token="</s>", chat_template=ZEPHYR)


def _with_roles(texts: Iterable[str]) -> Iterator[str]:
    """The template puts role names around every text: counted as often, they become single tokens."""
    for text in texts:
        yield text
        yield "user\nassistant\n"
