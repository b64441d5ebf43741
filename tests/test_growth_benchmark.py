"""The benchmark of growth: what it makes, and what it makes of what it measured."""

import csv
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from typer.testing import CliRunner

from benchmarks.growth.__main__ import app
from benchmarks.growth.measurement import COLUMNS, COURSE, _course, _of_steps
from benchmarks.growth.points import BASE, CURVES, Shape, points
from benchmarks.growth.results import Results, load
from benchmarks.growth.start import make_model, write_rows
from benchmarks.growth.trends import seconds, slope
from benchmarks.processes import KINDS, Sample, kind_of, sample
from iris_ray.config import RunConfig
from iris_ray.data.prepare import prepare_data
from iris_ray.data.rows import read_rows

TINY = replace(BASE, shape=Shape(hidden=32, layers=2, heads=2, mlp=2), response_tokens=21, prompts=50)


@pytest.mark.parametrize("point", [point for some in CURVES.values() for point in some], ids=str)
def test_all_recipes_are_valid(point):
    config = RunConfig.from_dict(point.job.recipe(Path(), Path("model"), Path("data.jsonl")))
    assert point.job.pairs <= point.job.prompts  # or fewer would be drawn
    assert config.generation.count * config.generation.num_cpus <= max(1, len(os.sched_getaffinity(0)) - 1)


def test_values_are_chosen():
    assert [p.value for p in points(["dataset", "batch"], [100, 64])] == [100, 64]
    assert [p.job.iterations for p in points(["iterations"], [50, 70])] == [50, 70]


def test_annotated_and_written_responses_have_the_wanted_length(tmp_path):
    parameters = make_model(TINY, tmp_path / "model")
    write_rows(TINY, tmp_path / "rows.jsonl")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    config = RunConfig.from_dict(TINY.recipe(tmp_path, tmp_path / "model", tmp_path / "rows.jsonl"))
    data = prepare_data(read_rows(config.data), tokenizer, config, tmp_path / "data")
    assert len({tuple(prompt) for prompt in data.train["prompt_tokens"]}) == len(data.train) == 50
    assert {len(response) for response in data.train["response_tokens"]} == {21}
    prompts = torch.tensor(data.train["prompt_tokens"])
    torch.manual_seed(0)
    written = model.generate(prompts, do_sample=True, top_k=0, max_new_tokens=21)
    assert written.shape[1] == prompts.shape[1] + 21
    assert not (written[:, prompts.shape[1] :] == tokenizer.eos_token_id).any()
    assert model.num_parameters() == parameters


def test_processes_are_told_apart():
    assert kind_of(["ray::Generator.play"]) == kind_of(["VLLM::EngineCore"]) == "generators"
    assert kind_of(["ray::GeneratorPool.run"]) == kind_of(["/usr/bin/raylet", "-x"]) == kind_of([]) == "rest"


def test_a_sample_grows_by_what_a_process_holds():
    code = "import sys; held = b'x' * (int(sys.argv[1]) << 20); print(); sys.stdin.read()"
    found = []
    for mib in (0, 64):
        command = [sys.executable, "-c", code, str(mib)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout
            process.stdout.readline()
            found.append(sample(process.pid))
            process.communicate()
    without, with_ = found
    assert with_.private_mib["driver"] - without.private_mib["driver"] == pytest.approx(64, abs=2)
    assert with_.mib - without.mib == pytest.approx(64, abs=4)
    assert with_.handles["driver"] == without.handles["driver"] >= 3


def step(iteration: int, time: float, pairs: int = 4) -> dict:
    return {"event": "step", "iteration": iteration, "time": time, "pairs": pairs, "response_tokens": 16.0}


STEPS = [step(1, 10), step(1, 11), step(1, 12), step(2, 17), step(2, 19), step(3, 24), step(3, 25)]


def test_speed_is_that_between_an_iterations_steps():
    assert _of_steps(STEPS) == {
        "pairs_per_s": 16 / 5,
        "response_tokens": 16.0,
        "boundary_s": 5,
        "iteration_s": 7,
    }


def test_a_course_has_what_was_held_when_an_iteration_ended():
    samples = [
        Sample(time, 0, dict.fromkeys(KINDS, time), dict.fromkeys(KINDS, int(time)))
        for time in (5, 11.5, 18, 30)
    ]
    told = [
        {"time": 9, "store_bytes": 0},
        {"time": 18, "store_bytes": 3 << 20},
        {"time": 18.5, "prepared": True},
    ]
    rows = _course(STEPS, samples, told)
    assert [row["iteration"] for row in rows] == [1, 2, 3]
    assert [row["seconds"] for row in rows] == ["", 7, 6]
    assert [row["buffer_mib"] for row in rows] == [11.5, 18, 18]
    assert [row["store_mib"] for row in rows] == [0, 3, 3]
    assert set(rows[0]) == set(COURSE)


def course(iterations: int = 100) -> list[dict]:
    rows = []
    for number in range(1, iterations + 1):
        row = dict.fromkeys(COURSE, 7.0) | {"iteration": number, "seconds": "" if number == 1 else 2.0}
        grown = 500.0 if number <= 10 else 1000 + 0.25 * number  # the start tells nothing of what comes
        rows.append(row | {"learner_mib": grown})
    return rows


def row(curve: str, value: int) -> dict:
    return dict.fromkeys(COLUMNS, 2.5) | {"curve": curve, "value": value}


def test_what_was_measured_is_drawn_and_told_and_not_measured_again(tmp_path):
    results = Results(tmp_path)
    for value in (4, 1):
        results.add(row("generators", value), [])
    results.add(row("iterations", 100), course())
    kept = load(results.course(100))
    assert slope(kept, "learner_mib") == pytest.approx(250)
    assert slope(kept, "buffer_mib") == pytest.approx(0)
    assert seconds(kept) == (2, 2)
    options = ["--results", str(tmp_path)]
    assert [r["value"] for r in csv.DictReader(results.points.open())] == ["4", "1", "100"]
    told = CliRunner().invoke(app, ["--curves", "generators", "--values", "1,4", *options]).output
    assert "| 1 | 2.5 |" in told
    assert "| learner | 1,025.0 | +250.0 |" in told
    assert {path.name for path in tmp_path.glob("*.svg")} == {"generators.svg", "iterations.svg"}


def test_a_job_on_several_curves_is_measured_once(tmp_path):
    results = Results(tmp_path)
    results.add(row("length", 16), [])
    options = ["--curves", "model,batch", "--values", "1,32", "--results", str(tmp_path)]
    assert CliRunner().invoke(app, options).exit_code == 0
    measured = [(r["curve"], r["value"], r["pairs_per_s"]) for r in load(results.points)]
    assert measured == [("length", "16", "2.5"), ("model", "1", "2.5"), ("batch", "32", "2.5")]


@pytest.mark.parametrize("options", [["--curves", "depth"], ["--values", "0"], ["--values", "a"]])
def test_wrong_options_are_told_of(options):
    assert CliRunner().invoke(app, options).exit_code == 2
