"""A study of self-play fine-tuning methods in worlds whose truth is known exactly."""
