"""The models whose weights travel. Plain data: no torch."""

from dataclasses import dataclass
from typing import Any

PROBE = [[(7 * i + j * j) % 900 + 2 for j in range(24)] for i in range(4)]
HEAD = 64  # width of an attention head


@dataclass(frozen=True)
class Shape:
    """A Qwen2 with tied embeddings, four query heads to one of keys and values."""

    vocab: int
    hidden: int
    layers: int

    @property
    def settings(self) -> dict[str, Any]:
        """By the names of `Qwen2Config`."""
        heads = self.hidden // HEAD
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": 4 * self.hidden,
            "num_hidden_layers": self.layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads // 4,
            "max_position_embeddings": 128,
            "architectures": ["Qwen2ForCausalLM"],
            "tie_word_embeddings": True,
            "bos_token_id": None,
            "eos_token_id": 1,
        }


# By millions of parameters, about.
SHAPES = {
    3: Shape(1024, 256, 3),
    30: Shape(8192, 512, 8),
    125: Shape(32000, 768, 11),
    500: Shape(32000, 1280, 20),
}
