"""The online game: real Ray, vLLM and DeepSpeed."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import made_model, metric_events

from iris_ray import RunConfig, SelfPlay

EVERY, BATCH, PROMPTS, ITERATIONS = 2, 24, 190, 2
STEPS = 8  # an iteration: 7 batches of 24 and one of 22
RECIPE = {
    "model": made_model(warmup_steps=60),
    "data": {
        "sort_digits": {"examples": PROMPTS, "min_digits": 2, "max_digits": 4},
        "holdout": 16,
        "max_prompt_tokens": 32,
        "max_response_tokens": 12,
    },
    "schedule": {"iterations": ITERATIONS, "epochs": 1, "refresh": EVERY, "max_staleness": 1},
    "generation": {"num_cpus": 0.25, "enforce_eager": True, "concurrency": 16, "max_ahead": 96},
    "learner": {
        "num_cpus": 0.5,
        "batch_size": BATCH,
        "learning_rate": 1e-3,
        "reference": "generator",
    },
    "sync": {"transport": "gloo"},  # as `nccl`, between CPUs; other runs take the object store
}


@pytest.fixture(scope="module", params=["continue"])  # test_in_flight has the other ways
def run(
    ray_here: None, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict]:
    config = RunConfig.from_dict(
        RECIPE
        | {"run": {"name": "online", "folder": str(tmp_path_factory.mktemp("runs"))}}
        | {"generation": RECIPE["generation"] | {"in_flight": request.param}}
    )
    return config.folder, SelfPlay(config).run()


def steps(folder: Path) -> list[dict]:
    return metric_events(folder, "step")


def test_it_is_played_to_the_end(run: tuple[Path, dict]) -> None:
    folder, summary = run
    assert summary["status"] == "finished"
    assert summary["ledger"] == {"committed": PROMPTS * ITERATIONS, "lost": 0, "duplicated": 0}
    assert all(entry["exact_match"] is not None for entry in summary["iterations"])
    assert len(steps(folder)) == STEPS * ITERATIONS
    assert summary["sync"]["parity_max_abs_diff"] < 1e-4


def test_no_pair_was_staler_than_allowed_when_it_was_trained_on(run: tuple[Path, dict]) -> None:
    """By the archive: which version wrote a pair, and by the order of prompts, which step took it."""
    folder, summary = run
    taken = [(event["staleness_mean"], event["staleness_max"]) for event in steps(folder)]
    assert max(stale for _, stale in taken) == 1
    assert [entry["staleness_max"] for entry in summary["iterations"]] == [1] * ITERATIONS
    for iteration in range(1, ITERATIONS + 1):
        first = (iteration - 1) * STEPS // EVERY  # the version that opens the iteration
        pairs = pq.read_table(folder / "samples" / f"iteration-{iteration:03d}.parquet").to_pylist()
        spans = [pair["version_spans"] for pair in pairs]
        tokens = [sum(span["tokens"] for span in of_pair) for of_pair in spans]
        assert tokens == [len(pair["synthetic_tokens"]) for pair in pairs]
        versions = {span["version"] for of_pair in spans for span in of_pair}
        assert min(versions) == first
        assert max(versions) > first
        assert max(versions) < first + STEPS // EVERY


def test_pairs_tell_which_versions_wrote_them(run: tuple[Path, dict]) -> None:
    folder, _ = run
    pairs = [pair for path in folder.glob("samples/*.parquet") for pair in pq.read_table(path).to_pylist()]
    assert len(pairs) == PROMPTS * ITERATIONS
    for pair in pairs:
        versions, tokens = zip(*(span.values() for span in pair["version_spans"]), strict=True)
        assert sum(tokens) == len(pair["synthetic_tokens"])
        assert list(versions) == sorted(set(versions))
        assert pair["version"] >= versions[-1]


def test_right_after_a_refresh_the_two_engines_agree(run: tuple[Path, dict]) -> None:
    """The first pairs of an iteration come from the very weights that the learner starts with."""
    for event in steps(run[0]):
        if event["step"] == 1:
            assert event["staleness_max"] == 0
            assert 0 < event["abs_reward_mean"] <= event["abs_reward_max"] < 1e-4
        elif event["staleness_mean"] == 1:
            assert event["abs_reward_mean"] > 1e-3  # the policy has moved on
