"""The processes of a run: all of its program's session, told by what they call themselves."""

import os
from contextlib import suppress

import psutil


def of_session(*leaders: int) -> list[psutil.Process]:
    """All that live of the sessions that processes `leaders` began, whether these live or not."""
    return [process for process in psutil.process_iter() if _lives_in(process, leaders)]


def _lives_in(process: psutil.Process, leaders: tuple[int, ...]) -> bool:
    with suppress(ProcessLookupError, PermissionError, psutil.Error):
        return os.getsid(process.pid) in leaders and process.status() != psutil.STATUS_ZOMBIE
    return False


def name_of(process: psutil.Process) -> str:
    """What a process calls itself, as `ray::Generator`; empty if it is just ending."""
    with suppress(psutil.Error, IndexError):
        return process.cmdline()[0].split(".")[0]
    return ""


def kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)
