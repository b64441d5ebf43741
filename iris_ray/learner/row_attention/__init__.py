"""Attention over a row in which responses share their prompt, on CPUs: an operator of torch."""
