"""How fast the generator is, beside vLLM's own offline generation."""
