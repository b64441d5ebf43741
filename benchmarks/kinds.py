"""Kinds of processes, told by what they call themselves."""

from collections.abc import Sequence

STATE = ("buffer", "controller", "store", "pool")  # without these a run goes back to its last checkpoint
BY_NAME = {
    "ray::SampleBuffer": "buffer",
    "ray::Controller": "controller",
    "ray::WeightStore": "store",
    "ray::GeneratorPool": "pool",
    "ray::Generator": "generator",
    "ray::RayTrainWorker": "learner",
    "ray::ServeController": "gateway",
    "ray::ProxyActor": "gateway",
    "ray::TrainController": "train",
    "ray::PlacementGroupCleaner": "train",
    "ray::DatasetManager": "train",
    "ray::SynchronizationActor": "train",
    "ray::PreemptionWatcher": "train",
    "ray::_AutoscalingCoordinatorActor": "train",
    "ray::DashboardAgent": "agents",
    "ray::RuntimeEnvAgent": "agents",
    "ray::IDLE": "idle workers",
}
BY_PREFIX = {
    "VLLM::": "engine",
    "ray::ServeReplica:": "gateway",
    "ray-dashboard": "dashboard",
    "ray::Dashboard": "agents",
    "ray::RuntimeEnv": "agents",
}
BY_PROGRAM = {  # the last part of a path in the command line
    "gcs_server": "gcs",
    "raylet": "raylet",
    "iris-ray": "driver",
    "dashboard.py": "dashboard",
    "default_worker.py": "idle workers",
    "monitor.py": "monitors",
    "log_monitor.py": "monitors",
    **dict.fromkeys(("cc1plus", "g++", "c++", "gcc", "ninja"), "compilers"),
}
OTHER = "other"  # helpers of Python's multiprocessing, and what just starts


def kind_of(command: Sequence[str]) -> str:
    """Of a process with this command line. Ray and vLLM put a name in place of its first word."""
    if not command:
        return OTHER
    name = command[0].split(".")[0]
    if name in BY_NAME:
        return BY_NAME[name]
    for prefix, kind in BY_PREFIX.items():
        if name.startswith(prefix):
            return kind
    if name.startswith("ray::") and name.endswith("/learner"):
        return "train"  # the task that waits for Ray Train
    for word in command[:4]:
        program = word.rsplit("/", 1)[-1]
        if program in BY_PROGRAM:
            return BY_PROGRAM[program]
    return OTHER
