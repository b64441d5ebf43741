"""Counters of what code does while it runs, whatever the machine."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

import iris_ray.learner.kernels.row_attention  # noqa: F401, registers its operators


def calls(task: Callable[[], Any]) -> int:
    """Calls of functions, those in C included, on this thread."""
    count = 0

    def note(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        task()
    finally:
        sys.setprofile(before)
    return count


def operations(task: Callable[[], Any]) -> int:
    """Operations that torch is asked for, backward passes included."""
    with _Operations() as counter:
        task()
    return counter.count


def flops(task: Callable[[], Any]) -> int:
    """Floating-point operations of torch's products and attention."""
    with FlopCounterMode(display=False, custom_mapping=ATTENTION) as counter:
        task()
    return counter.get_total_flops()


def _row_attention(products: int) -> Callable[..., int]:
    """Counts an operator of `row_attention`, which takes `products` products of what each token sees."""

    def count(query_THD: torch.Tensor, *others: Any, out_val: Any = None) -> int:
        segments_N4 = others[-2]
        lengths, prefixes = segments_N4[:, 1] - segments_N4[:, 0], segments_N4[:, 3] - segments_N4[:, 2]
        seen = (lengths * (lengths + 1) // 2 + lengths * prefixes).sum().item()
        return 2 * products * seen * query_THD.shape[1] * query_THD.shape[2]

    count._get_raw = True  # type: ignore[attr-defined]
    return count


ATTENTION = {
    torch.ops.iris_ray.row_attention: _row_attention(2),
    torch.ops.iris_ray.row_attention_backward: _row_attention(5),
}


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
