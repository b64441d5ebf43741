"""The other side: TRL's `DPOTrainer`.

It gets a model folder and a data set of texts, as its users give it. A tokenizer whose words are token
ids makes of them the very tokens of our pairs. Gradient checkpointing and the limit of 1024 tokens, both
on by default, are switched off, as are logs and checkpoints: each would make it slower or its work less.
"""

import tempfile
import time
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import DPOConfig, DPOTrainer

from benchmarks.learner.channel import Channel
from benchmarks.learner.job import Job
from benchmarks.learner.model import build_model
from benchmarks.learner.workload import END, LEARNING_RATE, PAD, TORCH_NAMES
from iris_ray.contracts import SelfPlayPair

BLOCKS_BEFORE = 1  # the parent's warm-up


class PeerSide:
    """Its answer has the times in seconds from step to step: collation, reference, gradient, optimiser."""

    def __init__(self, job: Job):
        self.steps = job.steps
        with tempfile.TemporaryDirectory() as folder:
            build_model(job.workload).save_pretrained(folder)
            batches = job.workload.batches(job.steps) * (job.blocks + BLOCKS_BEFORE)
            self.trainer = DPOTrainer(
                folder,
                args=_arguments(job, folder, len(batches)),
                train_dataset=Dataset.from_list([_texts(pair) for pairs in batches for pair in pairs]),
                processing_class=_tokenizer(job.workload.vocab),
            )
        _check(batches[0], self.trainer.train_dataset)

    def serve(self, channel: Channel) -> None:
        """Train in blocks of steps, one for each request."""
        self.trainer.add_callback(_Blocks(self.steps, channel))
        self.trainer.train()


class _Blocks(TrainerCallback):
    """Holds the trainer between blocks."""

    def __init__(self, steps: int, channel: Channel):
        self.steps, self.channel = steps, channel
        self.seconds: list[float] = []
        self.start = 0.0

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self._wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        now = time.perf_counter()
        self.seconds.append(now - self.start)
        self.start = now
        if len(self.seconds) == self.steps:
            self.channel.answer({"seconds": self.seconds})
            self._wait()

    def _wait(self) -> None:
        name = self.channel.request()
        assert name == "block", name
        self.seconds = []
        self.start = time.perf_counter()


def _arguments(job: Job, folder: str, steps: int) -> DPOConfig:
    """`mixed` is TRL's own way to train in bfloat16; `plain` has weights and optimiser in that format."""
    return DPOConfig(
        output_dir=folder,
        use_cpu=True,
        bf16=job.side == "mixed",
        model_init_kwargs={"dtype": TORCH_NAMES[job.dtype]} if job.side == "plain" else None,
        max_steps=steps,
        per_device_train_batch_size=job.workload.pairs,
        train_sampling_strategy="sequential",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        max_length=None,
        precompute_ref_log_probs=job.precomputed,
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        torch_compile=job.compile,
        dataloader_pin_memory=False,
    )


def _tokenizer(vocab: int) -> PreTrainedTokenizerFast:
    """Each word is the number of its token."""
    words = Tokenizer(WordLevel({_word(token): token for token in range(vocab)}, unk_token=_word(PAD)))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token=_word(PAD), eos_token=_word(END))


def _word(token: int) -> str:
    # The end token's word ends no other one: TRL looks at the text's end for it.
    return {PAD: "<pad>", END: "<end>"}.get(token, str(token))


def _texts(pair: SelfPlayPair) -> dict[str, str]:
    # TRL joins prompt and response without a space between them.
    parts = {
        "prompt": [*map(_word, pair.prompt_tokens), ""],
        "chosen": map(_word, pair.real_tokens),
        "rejected": map(_word, pair.synthetic_tokens),
    }
    return {name: " ".join(words) for name, words in parts.items()}


def _check(pairs: list[SelfPlayPair], rows: Dataset) -> None:
    """Both sides must train on the same tokens."""
    for pair, row in zip(pairs, rows, strict=False):
        ours = [pair.prompt_tokens, pair.real_tokens, pair.synthetic_tokens]
        assert ours == [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
