"""The processes of a run: all of one session, found by what they call themselves."""

import os
from contextlib import suppress

import psutil


def of_session(leader: int) -> list[psutil.Process]:
    """All that live of the session that process `leader` began, whether it lives itself or not."""
    return [process for process in psutil.process_iter() if _lives_in(process, leader)]


def _lives_in(process: psutil.Process, leader: int) -> bool:
    with suppress(ProcessLookupError, PermissionError, psutil.Error):
        return os.getsid(process.pid) == leader and process.status() != psutil.STATUS_ZOMBIE
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
