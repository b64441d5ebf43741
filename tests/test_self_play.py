"""The whole job on a tiny model: real Ray, vLLM and DeepSpeed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
import yaml
from conftest import made_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.environment import generator_environment
from iris_ray import RunConfig, SelfPlay
from iris_ray.export import export_checkpoint

RECIPE = {
    "model": made_model(warmup_steps=60),
    "data": {
        "sort_digits": {"examples": 200, "min_digits": 2, "max_digits": 4},
        "holdout": 32,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "schedule": {"iterations": 2, "epochs": 2},
    # Two generators and two learner ranks share two cores; the last batch of a pass is smaller.
    "generation": {"count": 2, "num_cpus": 0.25, "enforce_eager": True, "concurrency": 16, "max_ahead": 64},
    "learner": {
        "workers": 2,
        "num_cpus": 0.5,
        "batch_size": 48,
        "micro_batch_tokens": 200,
        "learning_rate": 1e-3,
        "max_grad_norm": 10,
    },
}
PAIRS = 200 * 2


def recipe(folder: Path, name: str) -> dict:
    return RECIPE | {"run": {"name": name, "folder": str(folder)}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict]:
    config = RunConfig.from_dict(recipe(tmp_path_factory.mktemp("runs"), "tiny"))
    return config, SelfPlay(config).run()


def test_the_summary_tells_what_happened(run: tuple[RunConfig, dict]) -> None:
    config, summary = run
    assert summary == json.loads((config.folder / "summary.json").read_text())
    assert (summary["run"], summary["status"]) == ("tiny", "finished")
    assert set(summary["versions"]) >= {"ray", "vllm", "deepspeed", "torch", "transformers"}
    assert [entry["iteration"] for entry in summary["iterations"]] == [1, 2]
    for entry in summary["iterations"]:
        assert entry["pairs"] == PAIRS
        assert entry["seconds"] > 0
        assert 0.5 <= entry["alpha"] <= 3
        assert 0 <= entry["exact_match"] <= 1
    assert 0 <= summary["baseline"]["exact_match"] <= 1
    assert summary["throughput"]["pairs_per_s"] > 0
    assert summary["throughput"]["generated_tokens_per_s"] > 0


def test_no_pair_is_lost_or_counted_twice(run: tuple[RunConfig, dict]) -> None:
    assert run[1]["ledger"] == {"committed": 400, "lost": 0, "duplicated": 0}


def test_every_update_of_every_generator_is_proven(run: tuple[RunConfig, dict]) -> None:
    config, summary = run
    updates = [event for event in metrics(config) if event["event"] == "update"]
    # A generator that got no prompt of a round may skip its version, but the first and last are needed.
    assert {event["version"] for event in updates} == {0, 1, 2}
    assert {event["generator"] for event in updates} == {"generator-0", "generator-1"}
    assert summary["sync"]["updates"] == len(updates)
    assert summary["sync"]["parity_max_abs_diff"] < 1e-5


def test_the_first_step_of_a_round_starts_at_zero(run: tuple[RunConfig, dict]) -> None:
    steps = [event for event in metrics(run[0]) if event["event"] == "step"]
    assert len(steps) == 2 * 2 * 5
    for first in (event for event in steps if event["step"] == 1):
        assert abs(first["loss"]) < 1e-6
        assert first["ess_real"] == pytest.approx(48)


def test_generation_overlaps_training(run: tuple[RunConfig, dict]) -> None:
    events = metrics(run[0])
    for iteration in (1, 2):
        mine = [event for event in events if event.get("iteration") == iteration]
        written = next(index for index, event in enumerate(mine) if event["event"] == "written")
        steps_before = [event for event in mine[:written] if event["event"] == "step"]
        # At most 64 of 200 pairs may be ahead of the learner: it took steps before the last was written.
        assert len(steps_before) >= 2


def test_the_written_pairs_are_kept(run: tuple[RunConfig, dict]) -> None:
    config, _ = run
    for iteration in (1, 2):
        rows = pq.read_table(config.folder / "samples" / f"iteration-{iteration:03d}.parquet").to_pylist()
        assert sorted(row["prompt_id"] for row in rows) == list(range(200))
        assert {row["version"] for row in rows} == {iteration - 1}
        assert all(row["real"].endswith("<|im_end|>") for row in rows)


def test_the_final_model_is_the_learners(run: tuple[RunConfig, dict]) -> None:
    final = run[0].folder / "final"
    probe = json.loads((final / "probe.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(final)
    AutoTokenizer.from_pretrained(final)
    for tokens, expected in zip(probe["sequences"], probe["logprobs"], strict=True):
        with torch.no_grad():
            table = model(torch.tensor([tokens])).logits.log_softmax(-1)[0, :-1]
        logprobs = table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]
        torch.testing.assert_close(logprobs, torch.tensor(expected), atol=1e-5, rtol=0)


def test_a_fresh_vllm_serves_the_final_model(
    run: tuple[RunConfig, dict], monkeypatch: pytest.MonkeyPatch
) -> None:
    from iris_ray.generation.policy_engine import PolicyEngine

    config, _ = run
    for name, value in generator_environment(config.generation).items():
        monkeypatch.setenv(name, value)
    probe = json.loads((config.folder / "final" / "probe.json").read_text())

    async def logprobs() -> list[list[float]]:
        engine = PolicyEngine(config, str(config.folder / "final"), end_token_id=0, load_format="auto")
        try:
            return await engine.logprobs(probe["sequences"])
        finally:
            engine.shutdown()

    for row, expected in zip(asyncio.run(logprobs()), probe["logprobs"], strict=True):
        assert row == pytest.approx(expected, abs=1e-5)


def test_nothing_is_left_running(run: tuple[RunConfig, dict]) -> None:
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def tspin_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict]:
    """An objective that looks at raw log-probs and first responses; a gap that first batches tell."""
    settings = {
        "objective": {"name": "tspin", "options": {"a": 0.5}},
        "alpha": {"gap": "nll", "gap_per": "sequence", "c": 1.0},
        "schedule": {"iterations": 2, "epochs": 1, "prompts_per_iteration": 96},
        # Cooler responses are likelier than annotated ones under their own model: a gap that is not 0.
        "generation": RECIPE["generation"] | {"count": 1, "temperature": 0.4},
        "learner": RECIPE["learner"] | {"workers": 1, "batch_size": 16},
    }
    config = RunConfig.from_dict(recipe(tmp_path_factory.mktemp("runs"), "tspin") | settings)
    return config, SelfPlay(config).run()


def test_tspin_compares_with_what_the_first_model_wrote(tspin_run: tuple[RunConfig, dict]) -> None:
    config, summary = tspin_run
    assert summary["ledger"] == {"committed": 192, "lost": 0, "duplicated": 0}
    first, second = (
        pq.read_table(config.folder / "samples" / f"iteration-00{i}.parquet").to_pylist() for i in (1, 2)
    )
    y0 = {row["prompt_id"]: row["synthetic_tokens"] for row in first}
    assert y0.keys() == {row["prompt_id"] for row in second}
    # The second round's first batch, scored by the model that the first round made.
    model = AutoModelForCausalLM.from_pretrained(export_checkpoint(config.folder, 1))

    def logprob(prompt: list[int], response: list[int]) -> torch.Tensor:
        with torch.no_grad():
            table = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
        return sum(table[len(prompt) - 1 + i, token] for i, token in enumerate(response))

    scores = torch.stack(
        [
            torch.stack(
                [
                    logprob(row["prompt_tokens"], response)
                    for response in (row["real_tokens"], row["synthetic_tokens"], y0[row["prompt_id"]])
                ]
            )
            for row in second[:16]
        ]
    )
    y, y1, y_first = scores.T
    expected = -(0.5 * (y - y1)).sigmoid().log().mean() - 0.1 * (0.5 * (y1 - y_first)).sigmoid().log().mean()
    step = next(e for e in metrics(config) if e["event"] == "step" and e["iteration"] == 2)
    assert step["loss"] == pytest.approx(expected.item(), abs=1e-4)


def test_the_gap_of_the_first_batch_sets_the_order_of_the_rest(tspin_run: tuple[RunConfig, dict]) -> None:
    config, summary = tspin_run
    for entry in summary["iterations"]:
        steps = [e for e in metrics(config) if e["event"] == "step" and e["iteration"] == entry["iteration"]]
        # The first step stands on r = r' = 0, where every order is the same.
        assert {(step["alpha"], step["gap"]) for step in steps} == {(entry["alpha"], entry["gap"])}
        assert entry["alpha"] == pytest.approx(min(3, 1 + entry["gap"]))
        assert entry["gap"] > 0
        assert "nll gap" in entry["reason"]
    state = json.loads((config.folder / "checkpoints" / "iteration-002" / "state.json").read_text())
    game = state["controller"]["game"]
    assert game["gaps"] == [entry["gap"] for entry in summary["iterations"]]
    assert game["end"]["reward_real"] == summary["iterations"][1]["reward_real"]


def test_warnings_are_kept(tspin_run: tuple[RunConfig, dict]) -> None:
    config, summary = tspin_run
    events = [event for event in metrics(config) if event["event"] == "warning"]
    assert [{k: v for k, v in event.items() if k not in ("event", "time")} for event in events] == summary[
        "warnings"
    ]
    # Cooled responses are told apart at once, and both kinds pushed down. T-SPIN has no order to watch.
    kinds = {warning["kind"] for warning in summary["warnings"]}
    assert "annotated_fall" in kinds
    assert "gap_saturates" not in kinds


def metrics(config: RunConfig) -> list[dict]:
    return [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]


def test_ctrl_c_stops_every_process_and_keeps_the_folder(tmp_path: Path) -> None:
    endless = recipe(tmp_path, "stopped") | {"schedule": {"iterations": 1000, "epochs": 1}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(endless))
    command = [str(Path(sys.executable).parent / "iris-ray"), "run", str(tmp_path / "recipe.yaml")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    folder = tmp_path / "stopped"
    try:
        wait_for(lambda: (folder / "metrics.jsonl").exists(), process)
        wait_for(lambda: '"iteration": 2' in (folder / "metrics.jsonl").read_text(), process)
        # A terminal sends Ctrl-C to every process of its foreground group.
        os.killpg(process.pid, signal.SIGINT)
        output, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, output
    assert "Traceback" not in output
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert summary["iterations"]
    wait_for(lambda: not children_of_session(process.pid))


def children_of_session(session: int) -> list[psutil.Process]:
    return [p for p in psutil.process_iter() if _session(p) == session and p.status() != psutil.STATUS_ZOMBIE]


def _session(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except (ProcessLookupError, PermissionError):
        return None


def wait_for(condition, process: subprocess.Popen | None = None, seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        assert process is None or process.poll() is None, process and process.communicate()[0]
        time.sleep(0.2)
