"""Scores of a model in tasks of the Language Model Evaluation Harness (lm-eval)."""
