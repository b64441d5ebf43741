"""Costs that are counted, not timed: the same on every machine, so that a test can hold them."""
