"""Settings of the demonstrations."""

from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from iris_ray.config.section import Section


class SortDigits(Section):
    """A made task with checkable answers: the prompt is a row of digits, the response the same, sorted."""

    examples: int = Field(4096, ge=1)
    """Annotated pairs to train on, without repetition."""
    min_digits: int = Field(3, ge=1, le=20)
    max_digits: int = Field(8, ge=1, le=20)

    @model_validator(mode="after")
    def _ordered(self) -> "SortDigits":
        if self.max_digits < self.min_digits:
            raise ValueError(
                f"max_digits ({self.max_digits}) must be at least min_digits ({self.min_digits})"
            )
        return self


class Data(Section):
    path: str | None = None
    """A JSONL, JSON, CSV or Parquet file or a folder saved by `datasets`, here or at a URI such as
    `s3://bucket/pairs.jsonl`; or the name of a hub data set."""
    config: str | None = None
    """Configuration of a hub data set that has several, such as `main` of `openai/gsm8k`."""
    split: str = "train"
    """Split to read where the source has several."""
    sort_digits: SortDigits | None = None
    """Make the digit-sorting task instead of reading data."""
    prompt_column: str = "prompt"
    response_column: str = "response"
    inbox: Path | None = None
    """Folder in which files of more annotated rows are put while the run goes on, with the same columns: each
    iteration begins with what is there."""
    messages_column: str = "messages"
    """Column of chat messages; used where present. The last assistant turn is the annotated response."""
    rounds: int | None = Field(None, ge=1)
    """Read only so many rounds of chat messages, from the start: a round ends with an assistant turn. Empty:
    all."""
    chat_template: bool = True
    """Put prompts into the model's chat template. `false` feeds them as they are."""
    chat_template_options: dict[str, Any] = {}
    """Options that the chat template has, such as `{enable_thinking: false}` of models that think first."""
    limit: int | None = Field(None, ge=1)
    """Read at most this many rows."""
    holdout: int = Field(256, ge=0)
    """Rows set aside for evaluation, drawn by seed. Never trained on."""
    subset: int | None = Field(None, ge=1)
    """Train on so many of the other rows that can be used, drawn by seed: a smaller subset lies within a
    larger one. Empty: all."""
    max_prompt_tokens: int = Field(1024, ge=1)
    max_response_tokens: int = Field(1024, ge=2)
    """Longest response in tokens, end token included: annotated rows above it are dropped and counted,
    written responses stop there and are marked `length`."""
    max_bad_fraction: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be malformed, empty or over-long before the run is refused."""

    @model_validator(mode="after")
    def _one_source(self) -> "Data":
        if (self.path is None) == (self.sort_digits is None):
            raise ValueError("set exactly one of data.path (data to read) and data.sort_digits (make a task)")
        return self
