"""Counters of what code does while it runs, whatever the machine."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode


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
    with FlopCounterMode(display=False) as counter:
        task()
    return counter.get_total_flops()


class _Operations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return func(*args, **(kwargs or {}))
