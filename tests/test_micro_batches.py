"""From token lists to sequence log-probs, and what a round keeps of them."""

from itertools import chain
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from conftest import VOCABULARY, make_pairs, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from iris_ray.learner.micro_batches import IGNORED, MicroBatch, lay_out, micro_batches
from iris_ray.learner.round_tail import RoundTail
from iris_ray.learner.sequence_scorer import SequenceScorer, sequence_logprobs
from iris_ray.objectives import build_objective
from iris_ray.samples import write_samples

CPU = torch.device("cpu")
SEQUENCES = [
    sequence
    for pair in make_pairs(6, seed=1)
    for sequence in ((pair.prompt_tokens, pair.real_tokens), (pair.prompt_tokens, pair.synthetic_tokens))
]


def untied(kind: str):
    """A small model of another architecture, with learned or rotary positions and a head of its own."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(scope="module", params=["qwen2", "llama", "gpt2"])
def scorer(request) -> SequenceScorer:
    model = tiny_model() if request.param == "qwen2" else untied(request.param)
    return SequenceScorer(model.eval())


def score(scorer: SequenceScorer, sequences: list[tuple[list[int], list[int]]], pad: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return sequence_logprobs(scorer, lay_out(sequences, pad), CPU)


def plain_logprob(model, prompt: list[int], response: list[int]) -> float:
    """log p(response | prompt) from the full table of one sequence without padding, in float64."""
    with torch.no_grad():
        table = model(torch.tensor([prompt + response])).logits[0].double().log_softmax(-1)
    return sum(table[len(prompt) - 1 + i, token].item() for i, token in enumerate(response))


def test_responses_alone_have_labels():
    batch = lay_out([([1, 2], [3, 4, 5]), ([6, 7, 8], [9])], pad=0)
    assert batch.tokens_ST.tolist() == [[1, 2, 3, 4, 5], [6, 7, 8, 9, 0]]
    assert batch.labels_ST.tolist() == [[IGNORED, IGNORED, 3, 4, 5], [IGNORED] * 3 + [9, IGNORED]]


def rows(batch: MicroBatch) -> list[list[int]]:
    return [
        tokens[: labels.ne(IGNORED).nonzero().max() + 1].tolist()
        for tokens, labels in zip(batch.tokens_ST, batch.labels_ST, strict=True)
    ]


@pytest.mark.parametrize(("size", "sizes"), [(1, [1] * 7), (3, [3, 3, 1]), (7, [7]), (100, [7])])
def test_micro_batches_hold_every_pair_in_the_order_told(size, sizes):
    pairs = make_pairs(7, seed=0)
    batches, order = micro_batches(pairs, size, pad=0)
    assert [len(batch.tokens_ST) for batch in batches] == [2 * n for n in sizes]
    halves = [(rows(batch)[:n], rows(batch)[n:]) for batch, n in zip(batches, sizes, strict=True)]
    real = list(chain(*(half for half, _ in halves)))
    synthetic = list(chain(*(half for _, half in halves)))
    assert real == [pairs[i].prompt_tokens + pairs[i].real_tokens for i in order]
    assert synthetic == [pairs[i].prompt_tokens + pairs[i].synthetic_tokens for i in order]


def test_pairs_of_similar_length_share_a_micro_batch():
    pairs = make_pairs(7, seed=0)
    lengths = [pairs[i].num_tokens for i in micro_batches(pairs, 2, pad=0)[1]]
    assert lengths == sorted(pair.num_tokens for pair in pairs)


def test_no_pairs_give_no_micro_batches():
    assert micro_batches([], 4, pad=0) == ([], [])


def test_scores_equal_a_plain_log_softmax(scorer):
    expected = [plain_logprob(scorer.model, *sequence) for sequence in SEQUENCES]
    assert score(scorer, SEQUENCES).tolist() == pytest.approx(expected, rel=1e-5)


def test_a_score_depends_on_its_own_sequence_alone(scorer):
    together = score(scorer, SEQUENCES)
    assert len({len(prompt) + len(response) for prompt, response in SEQUENCES}) > 3
    alone = torch.cat([score(scorer, [sequence]) for sequence in SEQUENCES])
    torch.testing.assert_close(alone, together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(scorer, SEQUENCES, pad=9), together, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(score(scorer, SEQUENCES[::-1]).flip(0), together, rtol=1e-5, atol=1e-5)


def test_token_scores_stand_at_their_tokens(scorer):
    batch = lay_out(SEQUENCES, pad=0)
    with torch.no_grad():
        scores_ST = scorer(batch.tokens_ST, batch.labels_ST)
    assert torch.equal(scores_ST != 0, batch.labels_ST != IGNORED)
    prompt, response = SEQUENCES[0]
    first = plain_logprob(scorer.model, prompt, response[:1])
    assert scores_ST[0, len(prompt)].item() == pytest.approx(first, rel=1e-4)


def test_samples_read_back_as_written(tmp_path):
    pairs = make_pairs(5, seed=0)
    path = tmp_path / "pairs.parquet"
    write_samples(path, iter([pairs[:3], pairs[3:]]), SimpleNamespace(decode=str))
    written = pq.read_table(path).to_pylist()
    assert len(written) == 5
    for row, pair in zip(written, pairs, strict=True):
        texts = {name: str(getattr(pair, f"{name}_tokens")) for name in ("prompt", "real", "synthetic")}
        assert row == vars(pair) | texts


def tail_rows(step: int) -> torch.Tensor:
    """Two pairs: r, r', response length and whether y' was cut."""
    return torch.tensor([[step, -step, 10, 0], [step + 2, -step, 20, 1]], dtype=torch.float64)


def test_the_end_of_a_round_is_its_last_tenth():
    tail = RoundTail(steps=20)
    for step in range(20):
        tail.add(tail_rows(step))
    objective = build_objective("iris")
    end = tail.end(objective, alpha=1.5)
    assert (end.reward_real, end.reward_synthetic) == (19.5, -18.5)  # of steps 18 and 19
    assert (end.response_tokens, end.alpha) == (15, 1.5)
    real, synthetic = torch.tensor([18.0, 20, 19, 21]), torch.tensor([-18.0, -18, -19, -19])
    assert end.loss == pytest.approx(objective(real, synthetic, alpha=1.5).item())


def test_a_short_round_ends_with_its_last_step():
    tail = RoundTail(steps=3)
    for step in range(3):
        tail.add(tail_rows(step))
    assert tail.end(build_objective("iris"), alpha=1.0).reward_real == 3
