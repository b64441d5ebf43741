"""What the whole job's benchmark makes of its rows."""

from typing import Any

from benchmarks.end_to_end.measurement import ratios


def row(way: str, seconds: float, writing: float = 0.0, training: float = 0.0) -> dict[str, Any]:
    timing = {"seconds": seconds, "writing_s": writing, "training_s": training}
    return {"way": way, "dtype": "fp32", "pairs_per_s": 100 / seconds} | timing


def test_each_way_of_ours_is_held_against_each_loop_and_overlap_against_its_parts() -> None:
    rows = [
        row("iteration", 10),
        row("no_overlap", 16, writing=6, training=8),
        row("one_core", 20, writing=9.5, training=9),
        row("generate_trl", 40),
    ]
    assert ratios(rows) == {
        "iteration_vs_generate_trl_fp32": 4,
        "no_overlap_vs_generate_trl_fp32": 2.5,
        "iteration_of_bound_fp32": 0.8,
        "iteration_of_one_core_parts_fp32": 0.95,
    }


def test_what_was_not_played_has_no_ratio() -> None:
    assert ratios([row("iteration", 10)]) == {}
    assert ratios([row("one_core", 20, writing=9, training=8), row("generate_trl", 40)]) == {}
