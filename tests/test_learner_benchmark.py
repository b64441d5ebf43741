"""The learner's benchmark: its arithmetic, and a run of a few steps against TRL."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.learner.arithmetic import needed_flops
from benchmarks.learner.workload import Workload

ROOT = Path(__file__).parent.parent
TINY = Workload(
    vocab=64,
    hidden=32,
    intermediate=48,
    layers=2,
    heads=4,
    kv_heads=2,
    prompt_tokens=6,
    response_tokens=8,
    pairs=3,
)


def test_parameters_are_those_of_the_model() -> None:
    from benchmarks.learner.model import build_model

    assert TINY.parameters == build_model(TINY).num_parameters()


def test_batches_are_the_same_every_time_and_lengths_vary_around_their_means() -> None:
    batches = Workload(pairs=100).batches(2)
    assert batches == Workload(pairs=100).batches(2)
    pairs = [pair for batch in batches for pair in batch]
    assert len({pair.prompt_id for pair in pairs}) == 200
    for mean, lengths in (
        (53, [len(pair.prompt_tokens) for pair in pairs]),
        (64, [len(pair.real_tokens) for pair in pairs]),
    ):
        assert min(lengths) >= mean / 2 - 1
        assert max(lengths) <= 1.5 * mean + 1
        assert abs(sum(lengths) / len(lengths) - mean) < 0.1 * mean


def test_arithmetic_is_what_torch_counts() -> None:
    """Torch counts whole squares of attention scores, so its count is taken for each couple of tokens."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from benchmarks.learner.model import build_model

    model = build_model(TINY)
    model.set_attn_implementation("eager")
    (pair,) = TINY.batches(1)[0][:1]
    prompt, *responses = (
        len(tokens) for tokens in (pair.prompt_tokens, pair.real_tokens, pair.synthetic_tokens)
    )
    tokens = prompt + sum(responses)
    row = torch.tensor([pair.prompt_tokens + pair.real_tokens + pair.synthetic_tokens])
    with FlopCounterMode(display=False) as counter:
        hidden = model.get_decoder()(row).last_hidden_state
        model.get_output_embeddings()(hidden[:, -sum(responses) :]).sum().backward()
    counts = counter.get_flop_counts()
    rotary = sum(sum(of.values()) for name, of in counts.items() if name.endswith("rotary_emb"))
    by_operation = {str(operation): count for operation, count in counts["Global"].items()}
    squares = by_operation.pop("aten.bmm") - rotary
    causal = sum(range(1, prompt + 1))
    causal += sum(sum(range(prompt + 1, prompt + length + 1)) for length in responses)

    needed = needed_flops(TINY, [pair])
    assert needed.layers + needed.head == sum(by_operation.values())
    assert needed.head == 3 * 2 * TINY.vocab * TINY.hidden * sum(responses)
    assert needed.attention == squares // tokens**2 * causal
    assert needed.total == needed.layers + needed.attention + needed.head


def test_a_run_compares_both_sides_on_the_same_tokens() -> None:
    pytest.importorskip("trl")
    options = {
        "vocab": TINY.vocab,
        "hidden": TINY.hidden,
        "intermediate": TINY.intermediate,
        "layers": TINY.layers,
        "prompt-tokens": TINY.prompt_tokens,
        "response-tokens": TINY.response_tokens,
        "pairs": TINY.pairs,
        "steps": 2,
        "repeats": 2,
        "threads": 1,
        "dtypes": "bf16",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.learner", "--json", "--no-compile", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    assert report["machine"]["threads"] == 1
    assert report["model"]["parameters"] == TINY.parameters
    assert {"torch", "trl", "transformers", "deepspeed"} <= set(report["versions"])
    measured = report["dtypes"]["bf16"]
    for name in (
        "pairs_per_s",
        "with_reference_pairs_per_s",
        "peer_pairs_per_s",
        "peer_precomputed_pairs_per_s",
        "ratio",
        "with_reference_ratio",
        "precomputed_ratio",
        "peak_fraction",
    ):
        assert 0 < measured[f"{name}_min"] <= measured[name] <= measured[f"{name}_max"]
    assert set(measured["peers"]) == {"mixed", "plain", "mixed-precomputed", "plain-precomputed"}
    assert measured["peak_gflops"] > 0
    pairs = [pair for batch in TINY.batches(2) for pair in batch]
    assert measured["gflop_per_pair"] == pytest.approx(needed_flops(TINY, pairs).total / 6e9)
    for side, peak in measured["peak_memory_mib"].items():
        assert peak >= measured["imported_memory_mib"][side] > 0
