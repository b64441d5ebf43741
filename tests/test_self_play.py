"""The whole job on a tiny model: real Ray, vLLM and DeepSpeed."""

import asyncio
import json
from typing import Any

import pyarrow.parquet as pq
import pytest
import ray
import torch
from conftest import made_model
from own_tasks import CHOOSE, QUESTIONS, accuracy, write_tasks
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.environment import generator_environment
from iris_ray import RunConfig, SelfPlay
from iris_ray.data.splits import load_split
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


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict]:
    tasks = tmp_path_factory.mktemp("tasks")
    write_tasks(tasks, [CHOOSE], QUESTIONS)
    own = {
        "run": {"name": "tiny", "folder": str(tmp_path_factory.mktemp("runs"))},
        "evaluation": {"tasks": ["choose"], "tasks_folder": str(tasks)},
    }
    config = RunConfig.from_dict(RECIPE | own)
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


def test_held_out_likelihoods_are_those_of_the_models(run: tuple[RunConfig, dict]) -> None:
    """By transformers: of the model that the last iteration made, and of the one before."""
    config, summary = run
    rows = pq.read_table(config.folder / "held-out" / "iteration-002.parquet").to_pylist()
    former = pq.read_table(config.folder / "held-out" / "iteration-001.parquet").to_pylist()
    holdout = load_split(config.folder / "data", "holdout")
    assert [row["prompt_id"] for row in rows] == holdout["prompt_id"]
    models = [config.folder / "final", export_checkpoint(config.folder, 1)]
    last, before = (
        {
            kind: [
                logprob(model, row["prompt_tokens"], response)
                for row, response in zip(holdout, responses, strict=True)
            ]
            for kind, responses in (
                ("real", holdout["response_tokens"]),
                ("former", [row["answer_tokens"] for row in former]),
            )
        }
        for model in map(AutoModelForCausalLM.from_pretrained, models)
    )
    entry = summary["iterations"][1]
    assert entry["held_out_nll"] == pytest.approx(
        -sum(last["real"]) / sum(map(len, holdout["response_tokens"])), abs=1e-4
    )
    sides = {kind: sum(last[kind]) - sum(before[kind]) for kind in last}
    assert entry["held_out_margin"] == pytest.approx((sides["real"] - sides["former"]) / 32, abs=1e-3)
    assert entry["answer_tokens"] == sum(len(row["answer_tokens"]) for row in rows) / 32
    assert summary["baseline"]["held_out_margin"] is None


def test_tasks_of_lm_eval_are_asked_of_the_generators(run: tuple[RunConfig, dict]) -> None:
    config, summary = run
    scores = [entry["task_choose"] for entry in (summary["baseline"], *summary["iterations"])]
    assert len(scores) == 3
    assert scores[0] == pytest.approx(accuracy(config.folder / "start", QUESTIONS, chat=True))
    assert scores[2] == pytest.approx(accuracy(config.folder / "final", QUESTIONS, chat=True))


def logprob(model: Any, prompt: list[int], response: list[int]) -> float:
    with torch.no_grad():
        table = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
    return sum(table[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))


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


def metrics(config: RunConfig) -> list[dict]:
    return [json.loads(line) for line in (config.folder / "metrics.jsonl").read_text().splitlines()]
