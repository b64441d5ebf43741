"""Ctrl-C, looked at when it suits."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def interrupt_flag() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets while the block runs.

    Python's own KeyboardInterrupt is raised wherever the program happens to be. Inside a callback of Ray
    it is lost, and the run would go on. Outside the main thread Ctrl-C never arrives.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGINT, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
