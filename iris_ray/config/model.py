"""Settings of the model."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from iris_ray.config.section import Section


class ScratchModel(Section):
    """A small model and tokenizer made on the spot, warmed by SFT on the annotated data."""

    vocab_size: int = Field(512, ge=300)
    """Most entries of the BPE tokenizer trained on the data."""
    padded_vocab_size: int = Field(0, ge=0)
    """Rows of the model's embedding, where there should be more than the tokenizer has entries: the cost of
    a real vocabulary."""
    hidden_size: int = Field(128, ge=16)
    intermediate_size: int = Field(384, ge=16)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    kv_heads: int = Field(2, ge=1)
    warmup_steps: int = Field(400, ge=0)
    """Most SFT steps before self-play starts."""
    warmup_batch_size: int = Field(64, ge=1)
    warmup_learning_rate: float = Field(2e-3, gt=0)
    stop_at_exact_match: float | None = Field(None, gt=0, le=1)
    """End the warm-up once greedy answers to held-out prompts reach this share, so that room is left."""

    @model_validator(mode="after")
    def _heads_fit(self) -> "ScratchModel":
        if self.hidden_size % (2 * self.heads):  # a head's positions turn in pairs
            raise ValueError(
                f"heads ({self.heads}) must divide hidden_size ({self.hidden_size}) into even parts"
            )
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads ({self.kv_heads}) must divide heads ({self.heads})")
        return self

    @property
    def head_size(self) -> int:
        return self.hidden_size // self.heads


class Lora(Section):
    """A low-rank adapter: trained and published instead of the model, which stays as it was loaded."""

    # There is no dropout: the game compares exact log-probs.
    rank: int = Field(16, ge=1, le=512)
    """Inner width of the adapter. vLLM serves at most 512."""
    alpha: float = Field(32, gt=0)
    """The adapter counts `alpha / rank` times."""
    target_modules: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """Last names of the linear layers that get an adapter, for instance `[q_proj, v_proj]`. The output head
    gets none."""


class Model(Section):
    path: str | None = None
    """Model folder or hub name in Hugging Face format."""
    scratch: ScratchModel | None = None
    """Make a small model on the spot instead of loading one."""
    architecture: Literal["qwen2", "mistral"] | None = None
    """What `scratch` makes: `qwen2` (or empty) with a ChatML template, `mistral` with one like Zephyr's. A
    model that is loaded must be of it."""
    lora: Lora | None = None
    """Train a LoRA adapter. Empty: train all weights."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the learner's forward pass and of the generators."""
    trust_remote_code: bool = False
    """Run code that comes with the model. Off unless you trust its author."""

    @model_validator(mode="after")
    def _one_source(self) -> "Model":
        if (self.path is None) == (self.scratch is None):
            raise ValueError("set exactly one of model.path (a model to load) and model.scratch (make one)")
        return self
