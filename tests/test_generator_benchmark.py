"""The generator's benchmark: a small run of it, and how blocks become a report."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.generator.block import Block
from benchmarks.generator.measurement import summarise

ROOT = Path(__file__).parent.parent


def test_ratios_are_taken_block_by_block() -> None:
    ours = [Block(1.0, [[2, 3], [4]]), Block(2.0, [[2, 3], [4]]), Block(1.0, [[2], [4]])]
    peers = [Block(1.5, [[2, 3], [4]]), Block(1.5, [[2, 5], [4]]), Block(1.0, [[2], [4]])]
    report = summarise(ours, peers)
    assert report["tokens_per_s"] == 2
    assert (report["tokens_per_s_min"], report["tokens_per_s_max"]) == (1.5, 3)
    assert report["peer_tokens_per_s"] == 2
    assert report["ratio"] == 1
    assert (report["ratio_min"], report["ratio_max"]) == (0.75, 1.5)
    assert report["tokens_per_block"] == report["peer_tokens_per_block"] == 3
    assert report["identical_responses"] == 5 / 6


def test_both_sides_write_the_same_responses() -> None:
    """In float32 a seed decides a response, so the peer must write what the actor does."""
    options = {
        "vocab": 300,
        "hidden": 64,
        "layers": 2,
        "heads": 2,
        "kv-heads": 1,
        "prompt-tokens": 6,
        "max-tokens": 8,
        "prompts": 12,
        "n": 2,
        "concurrency": 8,
        "repeats": 2,
        "dtype": "fp32",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.generator", "--json", "--eager", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)
    for name in ("tokens_per_s", "peer_tokens_per_s", "ratio"):
        assert 0 < report[f"{name}_min"] <= report[name] <= report[f"{name}_max"]
    assert report["identical_responses"] == 1
    assert report["tokens_per_block"] == report["peer_tokens_per_block"] == pytest.approx(24 * 8, rel=0.1)
    assert report["settings"]["replicas"] == 2
    assert {"torch", "ray", "python"} < set(report["versions"])
