"""The generator's engine: vLLM, no Ray."""
