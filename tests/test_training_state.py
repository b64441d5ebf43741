"""The training state: real DeepSpeed saves and resumes, over ZeRO stages, dtypes and numbers of ranks."""

import gc
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import on_ranks
from safetensors.torch import load_file
from torch import nn

from iris_ray.errors import CheckpointError

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

STEPS, HALF = 6, 3
SIZES = (7, 13, 5)  # odd, so that parts need padding
FILE_BYTES = 300  # room for the biases' state or one larger weight, and too little for the largest

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Case:
    stage: int
    dtype: str = "float32"
    optimizer: str = "AdamW"
    offload: str | None = None
    accumulate: str | None = "fp32"

    def __str__(self) -> str:
        return "-".join(str(part) for part in vars(self).values() if part is not None)


CASES = [
    *[Case(stage, dtype) for stage in (0, 1, 2, 3) for dtype in ("float32", "bfloat16")],
    Case(1, "bfloat16", accumulate=None),  # not DeepSpeed's BF16_Optimizer, as above
    Case(1, "bfloat16", offload="optimizer"),
    Case(2, "bfloat16", offload="optimizer"),
    Case(3, "bfloat16", offload="optimizer"),
    Case(3, "bfloat16", offload="parameters"),
    Case(0, optimizer="RMSprop"),
    Case(2, optimizer="RMSprop"),
    Case(3, "bfloat16", "RMSprop"),
]
UNTOUCHED = [Case(0), Case(0, "bfloat16"), Case(1, "bfloat16"), Case(2), Case(3, "bfloat16")]
# Saved as and by this many ranks, resumed as and by this many.
CROSSINGS = [
    (Case(3), 2, Case(2), 1),
    (Case(2), 1, Case(3), 2),
    (Case(0), 1, Case(1), 2),
    (Case(3), 1, Case(0), 2),
    (Case(3, "bfloat16"), 2, Case(2, "bfloat16"), 1),
    (Case(2, "bfloat16"), 1, Case(3, "bfloat16"), 2),
    (Case(3, "bfloat16"), 2, Case(3, "bfloat16"), 1),
    (Case(1, "bfloat16"), 1, Case(1, "bfloat16"), 2),
    (Case(1, "bfloat16"), 2, Case(0, "bfloat16"), 1),
    (Case(0, "bfloat16"), 2, Case(1, "bfloat16", accumulate=None), 1),
    (Case(2, "bfloat16", offload="optimizer"), 2, Case(3, "bfloat16", offload="parameters"), 1),
    (Case(2, "bfloat16"), 1, Case(2), 2),
    (Case(0, optimizer="RMSprop"), 1, Case(2, optimizer="RMSprop"), 2),
]


class Net(nn.Module):
    """Two trained layers around a frozen one."""

    def __init__(self, sizes: tuple[int, ...] = SIZES):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.Linear(sizes[0], sizes[1])
        self.frozen = nn.Linear(sizes[1], sizes[1]).requires_grad_(False)
        self.last = nn.Linear(sizes[1], sizes[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.frozen(self.first(x).tanh()).tanh())


def build_engine(case: Case, net: nn.Module | None = None) -> "DeepSpeedEngine":
    import deepspeed

    net = (net or Net()).to(getattr(torch, case.dtype))
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    # Two groups, with weight decay and without.
    groups = [{"params": trained[:1]}, {"params": trained[1:], "weight_decay": 0.1}]
    options = {"AdamW": {"fused": True}, "RMSprop": {"momentum": 0.9, "centered": True}}
    optimizer = getattr(torch.optim, case.optimizer)(groups, lr=1e-2, **options.get(case.optimizer, {}))
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "managed_gradient_accumulation": False,
        "zero_optimization": {
            "stage": case.stage,
            "overlap_comm": False,
            "reduce_bucket_size": 10_000,
            # Below the weights' sizes, and above the biases': only these stay gathered.
            "stage3_param_persistence_threshold": 20,
            "offload_optimizer": {"device": "cpu"} if case.offload else None,
            "offload_param": {"device": "cpu"} if case.offload == "parameters" else None,
        },
        "bf16": {"enabled": case.dtype == "bfloat16"},
        "data_types": {"grad_accum_dtype": case.accumulate if case.stage else None},
        "gradient_clipping": 1.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    engine, *_ = deepspeed.initialize(model=net, optimizer=optimizer, config=config, dist_init_required=False)
    gc.freeze()  # DeepSpeed collects garbage at every turn, slowly with all that was imported by now
    return engine


def train(engine: "DeepSpeedEngine", steps: range) -> Weights:
    """Take these steps on the same batches whatever the ranks; the weights afterwards."""
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    for step in steps:
        torch.manual_seed(100 + step)
        inputs, targets = torch.randn(4, SIZES[0]), torch.randn(4, SIZES[2])
        mine = slice(rank, None, ranks)
        dtype = next(engine.module.parameters()).dtype
        outputs = engine(inputs[mine].to(dtype)).float()
        engine.backward((outputs - targets[mine]).square().mean(), scale_wrt_gas=False)
        engine.step()
    return weights(engine)


def weights(engine: "DeepSpeedEngine") -> Weights:
    import deepspeed

    with deepspeed.zero.GatheredParameters(list(engine.module.parameters())):
        return {name: weight.detach().clone() for name, weight in engine.module.named_parameters()}


def saved_by(folder: Path, case: Case, ranks: int) -> Path:
    return folder / f"{case}-by-{ranks}"


def first_half(folder: Path) -> dict[Any, Weights]:
    """Save every case before the first step and after the third, and go on to the sixth."""
    from iris_ray.learner import training_state
    from iris_ray.learner.training_state import save_training_state

    training_state.FILE_BYTES = FILE_BYTES
    ranks = torch.distributed.get_world_size()
    results = {}
    for case in CASES:
        engine = build_engine(case)
        save_training_state(engine, saved_by(folder, case, ranks) / "start")
        train(engine, range(HALF))
        save_training_state(engine, saved_by(folder, case, ranks) / "half")
        results[case] = train(engine, range(HALF, STEPS))
    return results


def second_half(folder: Path) -> dict[Any, Any]:
    """Resume every case and crossing: what the model holds then, and after the sixth step."""
    from iris_ray.learner import training_state
    from iris_ray.learner.training_state import load_training_state, save_training_state

    training_state.FILE_BYTES = FILE_BYTES
    ranks = torch.distributed.get_world_size()
    results: dict[Any, Any] = {case: train(build_engine(case), range(STEPS)) for case in UNTOUCHED}
    same = [(case, ranks, case, ranks) for case in CASES]
    for crossing in same + [crossing for crossing in CROSSINGS if crossing[-1] == ranks]:
        source, saved_ranks, target, _ = crossing
        engine = build_engine(target)
        source_folder = saved_by(folder, source, saved_ranks) / "half"
        load_training_state(engine, source_folder)
        save_training_state(engine, folder / "again" / str(name_of(crossing)))
        loaded = weights(engine)
        results[crossing] = loaded, train(engine, range(HALF, STEPS))
    results["refusals"] = refusals(folder)
    return results


def name_of(crossing: tuple) -> str:
    return "-to-".join(map(str, crossing))


def refusals(folder: Path) -> dict[str, str]:
    """What cannot be resumed from, and the error; an engine that was refused stays as it was."""
    from iris_ray.learner.training_state import load_training_state, save_training_state

    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    whole = saved_by(folder, Case(2), 2) / "half"

    def spoilt(name: str, spoil: Callable[[Path], None]) -> Path:
        copy = folder / f"{name}-{ranks}"
        if rank == 0:
            shutil.copytree(whole, copy)
            spoil(copy / "training-state-00001.safetensors")
        torch.distributed.barrier()
        return copy

    def thawed() -> Net:
        net = Net()
        net.frozen.bias.requires_grad_(True)
        return net

    def colder() -> Net:
        net = Net()
        net.first.bias.requires_grad_(False)
        return net

    other = saved_by(folder, Case(2, optimizer="RMSprop"), 2) / "half"
    attempts: dict[str, tuple[Path, Case, nn.Module | None]] = {
        "nothing": (folder / "nowhere", Case(2), None),
        "file missing": (spoilt("missing", Path.unlink), Case(2), None),
        "file cut": (spoilt("cut", lambda path: os.truncate(path, path.stat().st_size - 1)), Case(2), None),
        "file of another save": (
            spoilt("mixed", lambda path: shutil.copy(other / path.name, path)),
            Case(2),
            None,
        ),
        "parameter not saved": (whole, Case(3), thawed()),
        "parameter not trained": (whole, Case(0), colder()),
        "other shape": (whole, Case(3, "bfloat16"), Net((7, 13, 6))),
        "other optimizer": (whole, Case(2, optimizer="RMSprop"), None),
        "optimizer without steps": (whole, Case(0, optimizer="SGD"), None),
    }
    messages = {}
    for name, (source, case, net) in attempts.items():
        engine = build_engine(case, net)
        before = weights(engine)
        with pytest.raises(CheckpointError) as error:
            load_training_state(engine, source)
        messages[name] = str(error.value)
        assert same(before, weights(engine))
    in_the_way = folder / f"in-the-way-{ranks}"
    if rank == ranks - 1:
        in_the_way.mkdir()
        (in_the_way / f"training-state-{rank:05d}.safetensors").mkdir()
    torch.distributed.barrier()
    with pytest.raises(CheckpointError) as error:
        save_training_state(build_engine(Case(3)), in_the_way)
    return messages | {"cannot write": str(error.value)}


def same(left: Weights, right: Weights) -> bool:
    """Bit for bit; a zero's sign aside."""
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("training-state")


@pytest.fixture(scope="module")
def runs(folder) -> dict[tuple[str, int], Any]:
    """What the last rank of one and of two saw, first in processes that save, then in ones that resume."""
    return {
        (name, ranks): on_ranks(ranks, task, folder)[-1]
        for name, task in (("first", first_half), ("second", second_half))
        for ranks in (1, 2)
    }


@pytest.fixture(params=[1, 2], ids=["1 rank", "2 ranks"])
def ranks(request) -> int:
    return request.param


def state_in(folder: Path) -> Weights:
    files = sorted(folder.glob("training-state-*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_resumed_run_goes_on_as_if_it_had_never_stopped(runs, case, ranks):
    _, trained = runs["second", ranks][case, ranks, case, ranks]
    assert same(trained, runs["first", ranks][case])


@pytest.mark.parametrize("case", UNTOUCHED, ids=str)
def test_saving_alters_nothing(runs, case, ranks):
    assert same(runs["second", ranks][case], runs["first", ranks][case])


@pytest.mark.parametrize("crossing", CROSSINGS, ids=name_of)
def test_a_run_resumes_in_another_layout(runs, folder, crossing):
    source, saved_ranks, target, resumed_ranks = crossing
    saved = state_in(saved_by(folder, source, saved_ranks) / "half")
    assert same(state_in(folder / "again" / name_of(crossing)), saved)
    loaded, trained = runs["second", resumed_ranks][crossing]
    for name, weight in loaded.items():
        if not name.startswith("frozen"):
            assert torch.equal(weight, saved[f"{name}/master"].to(weight.dtype))
    expected = runs["first", saved_ranks][source]
    tolerance = 1e-6 if source.dtype == "float32" else 1e-2
    for name, weight in trained.items():
        assert weight.dtype == getattr(torch, target.dtype)
        torch.testing.assert_close(weight, expected[name], rtol=tolerance, atol=tolerance, check_dtype=False)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_files_hold_each_trained_parameter_once(runs, folder, case, ranks):
    state = state_in(saved_by(folder, case, ranks) / "half")
    start = state_in(saved_by(folder, case, ranks) / "start")
    moments = ["exp_avg", "exp_avg_sq"]
    if case.optimizer == "RMSprop":
        moments = ["grad_avg", "momentum_buffer", "square_avg"]
    net = Net()
    trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
    assert state.keys() == {f"{name}/{key}" for name in trained for key in ["master", "step", *moments]}
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    # Without ZeRO, DeepSpeed takes a step of its own as it builds an engine for bfloat16.
    early = case.stage == 0 and case.dtype == "bfloat16"
    for name, parameter in trained.items():
        assert start[f"{name}/step"] == early
        assert state[f"{name}/step"] == HALF + early
        for moment in moments:
            assert state[f"{name}/{moment}"].shape == parameter.shape
            assert start[f"{name}/{moment}"].count_nonzero() == 0
            assert state[f"{name}/{moment}"].count_nonzero() > 0
        if not early:
            assert torch.equal(start[f"{name}/master"], parameter.to(getattr(torch, case.dtype)).float())
    files = [load_file(file) for file in (saved_by(folder, case, ranks) / "half").iterdir()]
    assert sum(map(len, files)) == len(state)
    for file in files:
        assert len(file) == 1 or sum(tensor.nbytes for tensor in file.values()) <= FILE_BYTES


@pytest.mark.parametrize(
    ("attempt", "words"),
    [
        ("nothing", ["training-state-00000.safetensors", "cannot be read"]),
        ("file missing", ["training-state-00001.safetensors", "cannot be read"]),
        ("file cut", ["training-state-00001.safetensors", "cannot be read"]),
        ("file of another save", ["training-state-00001.safetensors was saved as one of", "as one of 9."]),
        ("parameter not saved", ["'frozen.bias' is trained here"]),
        ("parameter not trained", ["'first.bias' was trained and saved"]),
        ("other shape", ["'last.weight' was saved as (5, 13), but is (6, 13)"]),
        ("other optimizer", ["exp_avg, exp_avg_sq, step", "grad_avg, momentum_buffer, square_avg, step"]),
        ("optimizer without steps", ["SGD keeps no number of steps"]),
        ("cannot write", ["cannot be written", "directory"]),
    ],
)
def test_what_does_not_fit_is_refused_on_every_rank(runs, ranks, attempt, words):
    message = runs["second", ranks]["refusals"][attempt]
    for word in words:
        assert word in message
