"""Small made things that several tests need."""

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

from actors.environment import learner_environment
from iris_ray.config import Learner, RunConfig
from iris_ray.contracts import SelfPlayPair, VersionSpan
from iris_ray.gap import PairMeans

if TYPE_CHECKING:
    from served import Served
    from transformers import LlamaForCausalLM, Qwen2ForCausalLM

VOCABULARY = 64
# Of a tiny model. Its weights are large enough that no two tokens are equally likely.
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}

MEANS = PairMeans(
    reward_real=1.5,
    reward_synthetic=-2.5,
    reference_real=-24.0,
    reference_synthetic=-4.0,
    tokens_real=12.0,
    tokens_synthetic=8.0,
    loss=0.7,
    iris_loss=-0.6,
    alpha=2.0,
)

SECONDS = {"wait": 0.25, "forward": 0.5, "backward": 1.0}  # of a step

# Before Ray is imported: some tests talk to clusters that other processes started.
os.environ.setdefault("RAY_AUTH_MODE", "token")

# Nobody announces that a node will be taken away: one process less for each learner that starts.
os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")

# Ray would have its workers give way to whatever else is under way: here, to the other half of the tests.
os.environ.setdefault("RAY_worker_niceness", "0")

# Two processes share the tests. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Files that play whole runs, or look at all that goes on on the machine; those that take longest first.
# Two of them at a time would starve each other.
RUN_FILES = [
    "chaos",
    "resume",
    "generator_pool",
    "multi_node",
    "self_play",
    "metrics",
    "gateway",  # stops the run that both look at
    "job",
    "room",
    "doctor",
]
# Short runs where nothing looks at the time. They go first of the rest, beside the run that is killed again
# and again.
SHORT_RUN_FILES = ["online", "lora_run", "paper"]

# The same examples on every machine, however slow it is.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = RUN_FILES + SHORT_RUN_FILES

    def place(item: pytest.Item) -> int:
        name = item.path.stem.removeprefix("test_")
        return order.index(name) if name in order else len(order)

    items.sort(key=place)  # else as they were


class RunsTogether(LoadFileScheduling):
    """One process has all files that play runs; the other begins with the rest, whole files too."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "runs" if Path(file).stem.removeprefix("test_") in RUN_FILES else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RunsTogether:
    return RunsTogether(config, log)


@pytest.fixture(scope="module")
def own_ray() -> Iterator[None]:
    """Clusters that are started meanwhile are no other test's "the one on this machine"."""
    ray = Path(sys.executable).parent / "ray"
    subprocess.run([ray, "get-auth-token", "--generate"], check=True, stdout=subprocess.DEVNULL)
    # Short, for paths of sockets.
    with TemporaryDirectory(dir="/tmp") as temporary, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_TMPDIR", temporary)
        yield


@pytest.fixture(scope="module")
def ray_here() -> Iterator[None]:
    """This process is in a cluster already, one without a dashboard, when a run begins."""
    import ray

    from actors import names

    def start() -> None:
        ray.init("local", namespace=names.NAMESPACE, include_dashboard=False, log_to_driver=False)

    try:
        start()
    except Exception as error:  # Ray has no class for it
        # It gives a node 30 s, which another test's run may take, whose processes are killed and start anew.
        if "timed out during startup" not in str(error):
            raise
        start()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Served"]:
    from served import Served

    served = Served(tmp_path_factory.mktemp("runs"))
    try:
        served.wait_until_it_trains()
        yield served
    finally:
        served.kill()


@pytest.fixture(scope="module")
def one_rank() -> Iterator[None]:
    """This process is the only rank of a learner on the CPU.

    The group stays: DeepSpeed keeps the first one that it saw in a process.
    """
    import torch

    with pytest.MonkeyPatch.context() as patch:
        for name, value in rank_environment(0, 1).items():
            patch.setenv(name, value)
        if not torch.distributed.is_initialized():
            store = torch.distributed.HashStore()
            torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        yield


def on_ranks(ranks: int, task: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `task(*arguments)` returns on each rank of a learner on the CPU, every rank in its own process."""
    import torch

    with TemporaryDirectory() as name:
        folder = Path(name)
        torch.multiprocessing.spawn(_run_rank, (ranks, folder, task, arguments), nprocs=ranks)
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(ranks)]


def _run_rank(rank: int, ranks: int, folder: Path, task: Callable[..., Any], arguments: tuple) -> None:
    import torch

    os.environ.update(rank_environment(rank, ranks))
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{folder}/store", rank=rank, world_size=ranks)
    torch.save(task(*arguments), folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def rank_environment(rank: int, ranks: int) -> dict[str, str]:
    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
    return learner_environment(Learner()) | own


def set_deepspeed(**zero: Any) -> None:
    """In a process of its own: have every engine that is built from now on take these ZeRO settings, too."""
    from iris_ray.learner import engine

    made = engine.engine_config

    def with_settings(*given: Any) -> dict[str, Any]:
        config = made(*given)
        config["zero_optimization"] |= zero
        return config

    engine.engine_config = with_settings


def run_config(**sections: dict[str, Any]) -> RunConfig:
    """A valid configuration of a float32 model and data that nobody loads, with `sections` laid over it."""
    return RunConfig.from_dict({"model": {"path": "a", "dtype": "float32"}, "data": {"path": "b"}} | sections)


def made_model(warmup_steps: int) -> dict[str, Any]:
    """`model` of a recipe: a model of 0.1 M parameters in float32, made when the run starts."""
    shape = {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 1}
    return {"dtype": "float32", "scratch": shape | {"warmup_steps": warmup_steps}}


def own_module() -> str:
    """The whole module `my_game` that docs/objectives.md shows."""
    page = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text()
    _, rest = page.split("`my_game.py`:\n\n```python\n")
    return rest.split("```")[0]


def metric_events(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """What stands in the run folder's metrics.jsonl by now, of one kind or all."""
    metrics = run / "metrics.jsonl"
    # The last line may be in the middle of being written.
    lines = metrics.read_text().split("\n")[:-1] if metrics.exists() else []
    return [event for event in map(json.loads, lines) if kind in (None, event["event"])]


def make_pairs(count: int, seed: int) -> list[SelfPlayPair]:
    """Pairs of random tokens, prompts and responses of 2 to 9 each; every third response was cut."""
    rng = random.Random(seed)

    def tokens() -> list[int]:
        return rng.choices(range(1, VOCABULARY), k=rng.randint(2, 9))

    def pair(i: int) -> SelfPlayPair:
        prompt, real, synthetic = tokens(), tokens(), tokens()
        finish_reason = "length" if i % 3 == 2 else "stop"
        return SelfPlayPair(1, i, prompt, real, synthetic, finish_reason, 0, [VersionSpan(0, len(synthetic))])

    return [pair(i) for i in range(count)]


def tiny_model(seed: int = 0) -> "Qwen2ForCausalLM":
    """A tied Qwen2 in float32."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(seed)
    return Qwen2ForCausalLM(Qwen2Config(tie_word_embeddings=True, **SIZES))


def untied_llama(seed: int = 1) -> "LlamaForCausalLM":
    """A Llama in float32 whose output layer has weights of its own."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(tie_word_embeddings=False, **SIZES))
