"""The learner's step on one rank: torch and DeepSpeed, no Ray."""
