"""From token lists to sequence log-probs, and what a round keeps of them."""

from dataclasses import replace
from itertools import chain
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch
from conftest import VOCABULARY, make_pairs, tiny_model
from transformers import AutoConfig, AutoModelForCausalLM

from iris_ray.contracts import SelfPlayPair
from iris_ray.learner.batch_rows import BatchRows
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
@pytest.mark.parametrize("kinds", [("real", "synthetic"), ("real", "synthetic", "initial")])
def test_micro_batches_hold_every_pair_kind_by_kind(size, sizes, kinds):
    pairs = make_pairs(7, seed=0)
    if "initial" in kinds:
        pairs = [replace(pair, initial_tokens=pair.real_tokens[::-1]) for pair in pairs]
    batches = micro_batches(pairs, size, pad=0)
    assert [len(indices) for _, indices in batches] == sizes
    assert sorted(chain(*(indices for _, indices in batches))) == list(range(7))
    for batch, indices in batches:
        assert rows(batch) == [
            pairs[i].prompt_tokens + getattr(pairs[i], f"{kind}_tokens") for kind in kinds for i in indices
        ]


def test_pairs_of_similar_length_share_a_micro_batch():
    pairs = make_pairs(7, seed=0)
    lengths = [pairs[i].num_tokens for _, indices in micro_batches(pairs, 2, pad=0) for i in indices]
    assert lengths == sorted(pair.num_tokens for pair in pairs)


def test_no_pairs_give_no_micro_batches():
    assert micro_batches([], 4, pad=0) == []


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
        tokens = {name: value for name, value in vars(pair).items() if name != "initial_tokens"}
        assert row == tokens | texts


def batch_rows(step: int, present: int = 2) -> BatchRows:
    """Two pairs whose rewards follow from `step`; the second was cut and is no copy."""
    pairs = [
        SelfPlayPair(1, 0, [1], [1] * 9, [1] * 9, "stop", 0),
        SelfPlayPair(1, 1, [1], [1] * 19, [2] * 21, "length", 0),
    ]
    logprobs = torch.full((2, 3), torch.nan, dtype=torch.float64)
    references = logprobs.clone()
    references[:, :present] = torch.tensor([[-9.0, -7, -5], [-11, -9, -8]])[:, :present]
    rewards = torch.tensor([[step, -step, 1], [step + 2, -step, 2]])
    return BatchRows.of(pairs, references + rewards, references)


def test_rows_tell_lengths_cuts_and_copies():
    rows = batch_rows(step=3)
    assert (len(rows), rows.truncated, rows.identical) == (2, 1, 1)
    assert rows.tokens.tolist() == [[9, 9], [19, 21]]
    assert rows.rewards[:, :2].tolist() == [[3, -3], [5, -3]]


def test_objectives_get_log_ratios_or_log_probs():
    rows = batch_rows(step=3, present=3)
    spin, tspin, sft = (build_objective(name) for name in ("spin", "tspin", "sft"))
    r, s, _ = rows.rewards.T
    assert rows.coefficients(spin, alpha=1.0)[0] == pytest.approx(spin(r, s).item())
    y, y1, y0 = rows.logprobs.T
    assert rows.coefficients(tspin, alpha=1.0)[0] == pytest.approx(tspin(y, y1, y0).item())
    loss, factors = rows.coefficients(sft, alpha=1.0)
    assert loss == 6  # both are -9 + 3 and -11 + 5
    assert factors.tolist() == [[-0.5, 0, 0], [-0.5, 0, 0]]


def test_without_first_responses_their_factors_are_zero():
    loss, factors = batch_rows(step=3, present=2).coefficients(build_objective("tspin"), alpha=1.0)
    assert loss > 0
    assert factors[:, 2].tolist() == [0, 0]
    assert factors[:, :2].abs().min() > 0


def test_the_end_of_a_round_is_its_last_tenth():
    tail = RoundTail(steps=20)
    for step in range(20):
        tail.add(batch_rows(step))
    spin, iris = build_objective("spin"), build_objective("iris")
    end = tail.means(spin, alpha=1.5)
    assert (end.reward_real, end.reward_synthetic) == (19.5, -18.5)  # of steps 18 and 19
    assert (end.reference_real, end.reference_synthetic) == (-10, -8)
    assert (end.tokens_real, end.tokens_synthetic, end.tokens, end.alpha) == (14, 15, 14.5, 1.5)
    real, synthetic = torch.tensor([18.0, 20, 19, 21]), torch.tensor([-18.0, -18, -19, -19])
    assert end.loss == pytest.approx(spin(real, synthetic).item())
    assert end.iris_loss == pytest.approx(iris(real, synthetic, alpha=1.5).item())


def test_a_short_round_ends_with_its_last_two_steps():
    tail = RoundTail(steps=3)
    for step in range(3):
        tail.add(batch_rows(step))
    assert tail.means(build_objective("iris"), alpha=1.0).reward_real == 2.5
