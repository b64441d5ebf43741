"""Operators of torch that are C++ of ours: attention, and log-probs of labels."""

HAS_KERNELS = ("cpu",)
"""Kinds of devices that have them."""
