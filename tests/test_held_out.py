"""Scores of answers to held-out prompts, beside a second way to compute them."""

import math
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import run_config
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st

from iris_ray.contracts import Answer
from iris_ray.errors import ConfigError
from iris_ray.evaluation import SCORERS, register_scorer
from iris_ray.held_out import HeldOut, distinct_2, self_bleu
from iris_ray.run_folder import RunFolder

TOKENS = st.lists(st.integers(0, 3), max_size=6)


class Letters:
    """A tokenizer whose tokens are letters, 0 an a; 9 ends a text."""

    def decode(self, tokens: list[int], **_: bool) -> str:
        return "".join("abcdefgh"[token] for token in tokens if token != 9)

    def batch_decode(self, rows: list[list[int]], **_: bool) -> list[str]:
        return [self.decode(row) for row in rows]


ROWS = Dataset.from_list(
    [
        {"prompt_id": 7, "prompt_tokens": [0, 1], "response_tokens": [2, 9], "response_text": "c"},
        {"prompt_id": 8, "prompt_tokens": [1], "response_tokens": [2, 3, 9], "response_text": "cd"},
    ]
)


def held_out(folder: Path, **evaluation: object) -> HeldOut:
    return HeldOut(run_config(evaluation=evaluation), RunFolder(folder), ROWS, Letters())  # type: ignore[arg-type]


def test_a_model_is_compared_with_the_one_before(tmp_path: Path) -> None:
    first = held_out(tmp_path)
    asked = first.questions(0)
    assert [(question.prompt, question.likely) for question in asked] == [
        ([0, 1], [[2, 9]]),
        ([1], [[2, 3, 9]]),
    ]
    scores = first.scores(0, [Answer([2, 9], -0.5, [-0.5]), Answer([4, 4, 9], -2.0, [-3.0])])
    assert scores["exact_match"] == 0.5
    assert scores["answer_tokens"] == 2.5
    assert scores["held_out_nll"] == pytest.approx(3.5 / 5)
    assert (scores["held_out_margin"], scores["score"]) == (None, None)
    # Another process goes on, as after a stop.
    second = held_out(tmp_path)
    assert [question.likely for question in second.questions(1)] == [
        [[2, 9], [2, 9]],
        [[2, 3, 9], [4, 4, 9]],
    ]
    scores = second.scores(1, [Answer([2, 9], -0.1, [-0.1, -0.1]), Answer([2, 3, 9], -1.0, [-1.0, -6.0])])
    # The first prompt's answer was the annotated one: no margin. The second: (−1 + 3) − (−6 + 2).
    assert scores["held_out_margin"] == pytest.approx((0 + 6) / 2)
    kept = pq.read_table(RunFolder(tmp_path).held_out(1)).to_pylist()
    assert [row["answer"] for row in kept] == ["c", "cd"]


def test_without_likelihoods_none_are_asked_for(tmp_path: Path) -> None:
    held = held_out(tmp_path, likelihoods=False)
    assert all(question.likely == [] for question in held.questions(0))
    scores = held.scores(0, [Answer([2, 9], None, []), Answer([9], None, [])])
    assert (scores["exact_match"], scores["held_out_nll"], scores["held_out_margin"]) == (0.5, None, None)
    assert held.questions(1) == held.questions(0)


def test_a_scorer_of_ones_own(tmp_path: Path) -> None:
    @register_scorer("longer_than_the_prompt")
    def longer(prompt: str, answer: str, annotated: str) -> float:
        return float(len(answer) > len(prompt))

    try:
        held = held_out(tmp_path, scorer="longer_than_the_prompt", likelihoods=False)
        answers = [Answer([2, 9], None, []), Answer([2, 3, 9], None, [])]
        assert held.scores(0, answers)["score"] == 0.5
    finally:
        SCORERS.discard("longer_than_the_prompt")
    with pytest.raises(ConfigError, match=r"evaluation\.scorer"):
        SCORERS["longer_than_the_prompt"]


def test_no_prompts_no_scores(tmp_path: Path) -> None:
    held = held_out(tmp_path, prompts=0)
    assert held.questions(0) == []
    assert held.scores(0, []) == {"exact_match": None}


@given(st.lists(TOKENS, max_size=5))
def test_distinct_2_counts_bigrams(answers: list[list[int]]) -> None:
    bigrams = [(row[i], row[i + 1]) for row in answers for i in range(len(row) - 1)]
    assert distinct_2(answers) == (len(set(bigrams)) / len(bigrams) if bigrams else None)


def test_self_bleu_tells_a_collapse() -> None:
    same = ["one two three four five"] * 4
    other = ["one two three four five", "six seven eight nine ten", "a b c d e", "v w x y z"]
    assert self_bleu(same) == pytest.approx(1)
    assert self_bleu(other) < 0.1
    assert self_bleu(["alone"]) is None


def test_self_bleu_by_its_definition() -> None:
    """Two texts of four words that share the first three: precisions 3/4, 2/3, 1/2 and, smoothed, 1/2."""
    texts = ["a b c d", "a b c e"]
    expected = math.exp(sum(map(math.log, (3 / 4, 2 / 3, 1 / 2, 1 / 2))) / 4)
    assert self_bleu(texts) == pytest.approx(expected)
