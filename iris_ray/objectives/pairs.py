"""Responses to the same prompt, compared one with one."""

import torch


def differences(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """left_i − right_i, (N,). Raises `ValueError` unless both have N entries."""
    if left.shape != right.shape:
        raise ValueError(
            f"this objective compares pairs, but there are {len(left)} responses on one side and "
            f"{len(right)} on the other"
        )
    return left - right
