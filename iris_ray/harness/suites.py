"""Which tasks of lm-eval belong together, and what was published of them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """A task of lm-eval. `shots` of `None` is lm-eval's own number, `metric` of `None` its first one."""

    name: str
    title: str
    shots: int | None = None
    metric: str | None = None


# The ten benchmarks and their shots: [note]. Which of lm-eval's variants and metrics: [choice], those
# of the two Open LLM Leaderboards.
PAPER = (
    Task("gsm8k", "GSM8K", 5, "exact_match,strict-match"),
    Task("leaderboard_math_hard", "MATH", 4, "exact_match,none"),
    Task("leaderboard_musr", "MuSR", 0, "acc_norm,none"),
    Task("mmlu", "MMLU", 5, "acc,none"),
    Task("leaderboard_mmlu_pro", "MMLU-Pro", 5, "acc,none"),
    Task("leaderboard_gpqa", "GPQA", 0, "acc_norm,none"),
    Task("hellaswag", "HellaSwag", 10, "acc_norm,none"),
    Task("winogrande", "WinoGrande", 5, "acc,none"),
    Task("leaderboard_bbh", "BBH", 3, "acc_norm,none"),
    Task("leaderboard_ifeval", "IFEval", 0, "prompt_level_strict_acc,none"),
)
SUITES = {"paper": PAPER}

# Averages of the ten in percent: [note], the one of gap feedback [paper].
PUBLISHED = {
    "Zephyr-7B, base": 38.56,
    "Zephyr-7B, SFT on 200k": 41.99,
    "Zephyr-7B, SPIN, best iteration": 41.14,
    "Zephyr-7B, SPACE": 42.40,
    "Zephyr-7B, T-SPIN": 43.56,
    "Zephyr-7B, IRIS, α = 0.5": 41.67,
    "Zephyr-7B, IRIS, α = 1.5": 43.14,
    "Zephyr-7B, IRIS, α = 2": 42.86,
    "Zephyr-7B, IRIS, geometric annealing": 43.92,
    "Zephyr-7B, IRIS, gap feedback": 44.57,
    "Zephyr-7B, IRIS on 26k samples, 2 iterations": 42.53,
    "Qwen2.5-3B-Instruct": 52.19,
    "Qwen2.5-3B-Instruct, IRIS": 56.18,
}
