"""Ctrl-C and its like, looked at when it suits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets while the block runs, or SIGTERM, by which `ray job stop` ends a job.

    Python's own KeyboardInterrupt is raised wherever the program happens to be. Inside a callback of Ray
    it is lost, and the run would go on. Outside the main thread Ctrl-C never arrives.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = {number: signal.signal(number, lambda *_: event.set()) for number in SIGNALS}
    try:
        yield event
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def hear_sigterm() -> None:
    """From now on SIGTERM is what Ctrl-C is."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@contextmanager
def sigterm_kept() -> Iterator[None]:
    """Who hears SIGTERM goes on to, though Ray takes it for itself as it starts in the block."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)
