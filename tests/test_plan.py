"""`iris-ray plan`: what it prints, what it refuses, and speeds that it takes from runs."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from iris_ray.cli import main
from iris_ray.config import RunConfig
from iris_ray.planning.calibration import Equation, MeasuredRun, calibrated, solve
from iris_ray.planning.hardware import Hardware
from iris_ray.planning.model_shape import model_shape
from iris_ray.planning.of_recipe import make_planner
from iris_ray.planning.planner import Planner
from iris_ray.planning.rates import Speeds
from iris_ray.run_folder import RunFolder

RECIPE: dict[str, Any] = {
    "model": {
        "scratch": {"hidden_size": 64, "intermediate_size": 128, "layers": 2, "heads": 2, "kv_heads": 1}
    },
    "data": {"path": "not-read.jsonl", "holdout": 8, "max_prompt_tokens": 40, "max_response_tokens": 30},
    "schedule": {"iterations": 3, "epochs": 1},
    "learner": {"batch_size": 32},
    "evaluation": {"prompts": 8},
}
CPUS: dict[str, Any] = {
    "cores_per_node": 4,
    "matrix_tflops": 0.1,
    "bandwidth_gb_s": 20,
    "data": {"prompts": 640, "prompt_tokens": 10, "response_tokens": 10},
}
GPUS: dict[str, Any] = CPUS | {
    "nodes": 100,
    "gpus_per_node": 8,
    "gpu_memory_gib": 80,
    "cores_per_node": 96,
    "node_memory_gib": 1000,
    "matrix_tflops": 900,
    "bandwidth_gb_s": 3000,
}
ON_GPUS = ("--set", "generation.num_gpus=1", "--set", "learner.num_gpus=1")
Plan = Callable[..., tuple[int, str]]


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Plan:
    """Runs the command on `RECIPE` and this hardware; exit code and what was printed."""

    def run(hardware: dict[str, Any] | None, *more: str) -> tuple[int, str]:
        recipe, machines = tmp_path / "recipe.yaml", tmp_path / "hardware.yaml"
        recipe.write_text(yaml.safe_dump(RECIPE))
        arguments = ["iris-ray", "plan", str(recipe), *more]
        if hardware is not None:
            machines.write_text(yaml.safe_dump(hardware))
            arguments += ["--hardware", str(machines)]
        monkeypatch.setattr(sys, "argv", arguments)
        with pytest.raises(SystemExit) as exit_:
            main()
        printed = capsys.readouterr()
        return int(exit_.value.code or 0), printed.out + printed.err

    return run


def test_json_tells_memory_split_rates_and_warnings(plan: Plan) -> None:
    code, printed = plan(GPUS, "--json", *ON_GPUS, "--set", "generation.count=4")
    assert code == 0
    told = json.loads(printed)
    assert told["as_configured"]["generators"] == 4
    assert told["data"]["pairs_per_iteration"] == 640
    assert told["memory_gib"]["learner"]["fits"]
    balanced = told["balanced"]
    assert balanced["generators"] + balanced["learner_ranks"] <= 800
    simulated = told["as_configured"]["simulated"]
    assert simulated["ledger"] == {"committed": 2 * 640, "lost": 0, "duplicated": 0}
    assert balanced["simulated"]["pairs_per_s"] > 0.95 * simulated["pairs_per_s"]
    assert set(told["sync_seconds"]) == {"object_store", "nccl"}
    assert simulated["run_seconds"] > simulated["seconds"]
    assert any("an iteration has 640 pairs" in warning for warning in told["warnings"]) == (4 * 64 > 640)


def test_people_get_tables(plan: Plan) -> None:
    code, printed = plan(CPUS)
    assert code == 0
    for word in ("pairs/s", "learner waits", "KV cache", "object_store", "nothing was measured"):
        assert word in printed


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"nodes": 0}, "nodes: 0 does not fit"),
        ({"matrix_tflops": -1}, "matrix_tflops: -1 does not fit"),
        ({"matrix_tflops": 1e9}, "matrix_tflops: 1000000000.0 does not fit"),
        ({"learner_share": 1.5}, "learner_share: 1.5 does not fit"),
        ({"gpus": 8}, "gpus: there is no such field. There are: nodes, gpus_per_node"),
        ({"gpus_per_node": 8}, "gpu_memory_gib is missing: 8 GPUs per node have memory"),
        ({"gpu_memory_gib": 80}, "gpu_memory_gib (80) without GPUs"),
        ({"calls": {"lease": "soon"}}, "calls.lease: 'soon' does not fit"),
        ({"data": {"prompts": 5}}, "data.prompt_tokens: is missing"),
        ({"data": CPUS["data"] | {"prompt_tokens": 400}}, "data.prompt_tokens (400) is above the recipe's"),
        (GPUS, "generation.num_gpus is 0, and the hardware has 8 GPUs per node"),
    ],
)
def test_nonsense_hardware_is_refused_with_the_field(
    plan: Plan, changed: dict[str, Any], message: str
) -> None:
    code, printed = plan(CPUS | changed)
    assert code == 1
    assert message in " ".join(printed.split())
    assert "Traceback" not in printed


def test_several_recipes_are_planned_as_one(plan: Plan, tmp_path: Path) -> None:
    second = tmp_path / "second.yaml"
    second.write_text("generation: {count: 3}\n")
    told = json.loads(plan(CPUS, str(second), "--json")[1])
    assert (told["run"], told["as_configured"]["generators"]) == ("recipe-second", 3)


def test_a_file_that_is_no_hardware_is_refused(plan: Plan, tmp_path: Path) -> None:
    code, printed = plan(None, "--hardware", str(tmp_path / "none.yaml"))
    assert code == 1
    assert "there is no such file" in printed
    (tmp_path / "list.yaml").write_text("- 1\n")
    assert "must hold fields" in plan(None, "--hardware", str(tmp_path / "list.yaml"))[1]
    code, printed = plan(CPUS, "--measured", str(tmp_path))
    assert code == 1
    assert "holds no run" in printed


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["learner.workers=64"], "32 ranks have no pair to train on"),
        (["generation.count=900"], "The recipe asks for 901 GPUs, and there are 800"),
        (["generation.count=20", "generation.max_ahead=64"], "generation.max_ahead lets 64 pairs"),
        (["generation.count=20"], "an iteration has 640 pairs"),
    ],
)
def test_what_will_be_in_the_way_is_told(plan: Plan, settings: list[str], message: str) -> None:
    overrides = [part for setting in settings for part in ("--set", setting)]
    code, printed = plan(GPUS, "--json", *ON_GPUS, *overrides)
    assert code == 0
    assert any(message in warning for warning in json.loads(printed)["warnings"])


def test_a_model_too_large_for_the_gpu_is_told(plan: Plan) -> None:
    code, printed = plan(GPUS | {"gpu_memory_gib": 1}, "--json", *ON_GPUS)
    told = json.loads(printed)
    assert code == 0
    assert not told["memory_gib"]["learner"]["fits"]
    assert told["balanced"] is None
    assert any("learner.zero_stage=3" in warning for warning in told["warnings"])


def test_two_equations_give_what_is_fixed_and_the_factor() -> None:
    fixed, factor = 0.05, 1.7

    def measured(count: float, work: float) -> Equation:
        return Equation(count, work, count * fixed + work * factor)

    assert solve([measured(100, 3), measured(100, 30)], 1.0) == pytest.approx((fixed, factor))
    # One run alone: what is fixed is given.
    assert solve([measured(100, 3)], fixed) == pytest.approx((fixed, factor))


def test_speeds_come_back_from_a_run_that_had_them(tmp_path: Path) -> None:
    hardware = Hardware(**CPUS)
    # The engine's step and arithmetic are in the proportion of the description, which calibration keeps.
    true = Speeds(3e9, 0.03, 25e9, 0.008, 14e9, engine_request_s=0.003)
    runs = []
    for name, changed in (("a", {}), ("b", {"learner.batch_size": 128, "generation.concurrency": 8})):
        values = RECIPE | {"run": {"name": name, "folder": str(tmp_path)}}
        for key, value in changed.items():
            section, _, field = key.partition(".")
            values = values | {section: values.get(section, {}) | {field: value}}
        runs.append(_played(RunConfig.from_dict(values), hardware, true))
    guessed = Speeds.of(hardware, RunFolder(runs[0]).read_config())
    found = calibrated(guessed, [MeasuredRun.read(run) for run in runs], hardware)
    for field in ("learner_flops", "learner_pass_s", "engine_flops", "engine_request_s"):
        assert getattr(found, field) == pytest.approx(getattr(true, field), rel=0.1), field


def _played(config: RunConfig, hardware: Hardware, speeds: Speeds) -> Path:
    """Folder of a run whose summary tells what a simulation with these speeds did."""
    folder = RunFolder.create(config)
    workload = make_planner(config, hardware, []).workload
    planner = Planner(config, hardware, model_shape(config), workload, speeds)
    found = planner.simulate(iterations=3)
    rows = range(planner.pairs)
    lengths = zip(workload.prompt, workload.real, workload.draw_written(len(rows), [0, 1]), strict=False)
    columns = zip(*([[0] * int(length) for length in row] for row in lengths), strict=True)
    names = ("prompt_tokens", "real_tokens", "synthetic_tokens")
    table = pa.table({name: list(column) for name, column in zip(names, columns, strict=True)})
    for iteration in range(3):
        pq.write_table(table, folder.samples / f"iteration-{iteration}.parquet")
    busy = found["seconds"] * (1 - found["generators_idle_share"])
    written = 3 * sum(len(row) for row in table["synthetic_tokens"].to_pylist())
    rounds = [
        entry | {"steps": -(-entry["pairs"] // config.learner.batch_size)} for entry in found["iterations"]
    ]
    folder.write_summary(
        {
            "iterations": rounds,
            "throughput": {"generated_tokens_per_s": written / busy},
            "data": {"train": 640, "holdout": 8},
        }
    )
    return folder.path
