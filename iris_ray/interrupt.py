"""Ctrl-C and its like, looked at when it suits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Interrupts:
    """How somebody may ask by a signal that a run ends."""

    at_once: threading.Event = field(default_factory=threading.Event)
    """Ctrl-C, or SIGTERM, by which `ray job stop` ends a job."""
    at_checkpoint: threading.Event = field(default_factory=threading.Event)
    """SIGUSR1, which a batch system can send some time before it ends a job."""


@contextmanager
def interrupts_heard() -> Iterator[Interrupts]:
    """What signals set while the block runs.

    Python's own KeyboardInterrupt is raised wherever the program happens to be. Inside a callback of Ray
    it is lost, and the run would go on. Outside the main thread Ctrl-C never arrives.
    """
    heard = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return
    events: dict[int, threading.Event] = {
        signal.SIGINT: heard.at_once,
        signal.SIGTERM: heard.at_once,
        signal.SIGUSR1: heard.at_checkpoint,
    }
    before = {number: signal.signal(number, lambda number, _: events[number].set()) for number in events}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hear_signals() -> None:
    """From now on SIGTERM and SIGUSR1 are what Ctrl-C is."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.default_int_handler)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Who hears SIGTERM goes on to, though Ray takes it for itself as it starts in the block."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
