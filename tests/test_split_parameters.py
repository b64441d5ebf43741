"""With ZeRO-3 no rank ever holds a whole model, and what it computes stays the same."""

import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import SIZES, make_pairs, on_ranks, run_config, set_deepspeed
from test_sequence_scorer import ARCHITECTURES, GROUPS, MAX_LENGTH
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from iris_ray.learner.sequence_scorer import SequenceScorer
from iris_ray.memory import BYTES

TOLERANCE = 1e-4  # of log p in float32
# Of DeepSpeed. With the first, no parameter is so small that it stays whole. The others are to a model of
# 100,000 parameters what DeepSpeed's own are to one of some billions.
SETTINGS = {
    "stage3_param_persistence_threshold": 0,
    "stage3_max_reuse_distance": 30_000,
    "stage3_max_live_parameters": 30_000,
    "stage3_prefetch_bucket_size": 1_500,
}


def scores_and_ways() -> dict[str, Any]:
    """Of each architecture: log p under policy and opponent, and which ways were found."""
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    set_deepspeed(**SETTINGS)
    lengths = {"max_prompt_tokens": 20, "max_response_tokens": 20}
    config = run_config(data={"path": "b"} | lengths, learner={"zero_stage": 3})
    assert config.max_length == MAX_LENGTH
    found = {}
    for name, architecture in ARCHITECTURES.items():
        learner = SelfPlayLearner(architecture.build(), config, torch.device("cpu"))
        players = learner.players
        assert all(parameter.numel() == 0 for _, parameter in players.policy_weights())
        assert all(parameter.numel() == 0 for _, parameter in players.opponent_weights())
        with torch.no_grad():
            batch = players.scorer.lay_out(GROUPS)
            with players.opponent_scorer(learner.engine) as opponent:
                scores = [batch.sum_by_sequence(each(batch)) for each in (learner.engine, opponent)]
        held = [
            sum(parameter.ds_tensor.numel() for _, parameter in weights)
            for weights in (players.policy_weights(), players.opponent_weights())
        ]
        whole = sum(parameter.ds_numel for _, parameter in players.policy_weights())
        found[name] = scores, (players.scorer.head_apart, players.scorer.shares_prompts), held, whole
    return found


@pytest.fixture(scope="module")
def by_rank() -> list[dict[str, Any]]:
    return on_ranks(2, scores_and_ways)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_what_is_split_is_computed_as_what_is_whole(architecture: str, by_rank: list[dict[str, Any]]) -> None:
    scorer = SequenceScorer.fastest(ARCHITECTURES[architecture].build().float(), MAX_LENGTH)
    batch = scorer.lay_out(GROUPS)
    with torch.no_grad():
        expected = batch.sum_by_sequence(scorer(batch))
    for found in by_rank:
        scores, ways, held, whole = found[architecture]
        assert ways == (scorer.head_apart, scorer.shares_prompts)
        for each in scores:
            torch.testing.assert_close(each, expected, atol=TOLERANCE, rtol=TOLERANCE)
        for share in held:
            assert whole / 2 <= share < whole / 2 + 200  # the last parts are filled up


def peak_mib(folder: Path, reference: str, dtype: str) -> float:
    """The most memory of its own that this rank had while it made its players of a model in `folder`."""
    from iris_ray.learner.engine import prepare_model
    from iris_ray.learner.players import build_players

    config = run_config(
        model={"path": str(folder), "dtype": dtype}, learner={"zero_stage": 3, "reference": reference}
    )
    model = AutoModelForCausalLM.from_pretrained(folder)
    before = peak = _own_memory_mib()
    over = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not over.wait(0.002):
            peak = max(peak, _own_memory_mib())

    watching = threading.Thread(target=watch)
    watching.start()
    prepare_model(model, config.learner, config.model.dtype)
    build_players(model, config)
    over.set()
    watching.join()
    return max(peak, _own_memory_mib()) - before


def _own_memory_mib() -> float:
    """Without what is mapped from files."""
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["RssAnon"].split()[0]) / 1024


@pytest.mark.parametrize(
    ("reference", "dtype", "models"),
    [("generator", "bfloat16", 1), ("learner", "bfloat16", 2), ("generator", "float32", 1)],
)
def test_no_rank_ever_holds_a_whole_model(
    reference: str, dtype: str, models: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", "65536")  # what is freed goes back to the system at once
    size = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 32, "vocab_size": 1000}
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**size)).save_pretrained(tmp_path)
    whole = (tmp_path / "model.safetensors").stat().st_size / 2**20  # in float32, 518 MiB
    whole *= BYTES[dtype] / 4
    for peak in on_ranks(2, peak_mib, tmp_path, reference, dtype):
        # Shares of two ranks, a layer (8 MiB), and what libraries take.
        assert models * whole / 2 < peak < models * whole / 2 + 50


def trained_and_published(lora: dict | None, stage: int) -> list[dict[str, torch.Tensor]]:
    """What is published after a round, and of the next one's opponent; each after forward passes alone."""
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    config = run_config(
        model={"path": "a", "dtype": "float32", "lora": lora},
        learner={"zero_stage": stage, "learning_rate": 1e-2, "weight_decay": 0.1, "batch_size": 8},
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**(SIZES | {"num_hidden_layers": 12})))
    learner = SelfPlayLearner(model, config, torch.device("cpu"))
    rank, published = torch.distributed.get_rank(), []
    learner.start_round(1, 4)
    for step in range(4):
        learner.step(make_pairs(8, seed=step)[rank::2], alpha=1.5)
    for opponent in (False, True):
        if opponent:
            learner.start_round(2, 4)
        learner.token_logprobs([[3, 4, 5, 6]], opponent)
        published.append({name: tensor.clone() for name, tensor in learner.weights(opponent)})
    return published


def split_and_not() -> list[tuple[list[dict[str, torch.Tensor]], list[dict[str, torch.Tensor]]]]:
    set_deepspeed(**SETTINGS)
    return [(trained_and_published(lora, 3), trained_and_published(lora, 2)) for lora in (None, {"rank": 4})]


def test_a_model_that_is_never_gathered_as_a_whole_is_trained_and_published() -> None:
    for split, whole in on_ranks(2, split_and_not)[1]:
        for found, expected in zip(split, whole, strict=True):
            torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
