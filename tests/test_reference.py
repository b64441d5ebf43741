"""log p of the opponent: brought by the pairs instead of a second model, and at the sampling temperature."""

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from conftest import make_pairs, on_ranks, run_config, tiny_model
from torch import nn

from iris_ray.config import RunConfig
from iris_ray.contracts import SelfPlayPair, StepReport
from iris_ray.errors import ConfigError, IrisRayError
from iris_ray.game import Round
from iris_ray.learner.kept_weights import KeptWeights
from iris_ray.samples import read_pairs, write_pairs

if TYPE_CHECKING:
    from iris_ray.learner.self_play_learner import SelfPlayLearner

pytestmark = pytest.mark.usefixtures("one_rank")

LORA = {"rank": 4}
PLAYERS = pytest.mark.parametrize("lora", [None, LORA], ids=["whole model", "lora"])
OBJECTIVES = ["iris", "spin", "space", "spif", "sft"]
ALPHA = 1.7
STEPS = 3  # two batches, and the first one again
PROBE = [pair.prompt_tokens + pair.real_tokens for pair in make_pairs(3, seed=7)]
# ZeRO stages, dtypes and adapters.
SPREAD = [(0, "bfloat16", None), (2, "float32", None), (3, "bfloat16", None), (3, "bfloat16", LORA)]

Weights = dict[str, torch.Tensor]
Pairs = list[SelfPlayPair]


def configuration(reference: str, lora: dict | None, dtype: str = "float32", **sections: Any) -> RunConfig:
    learner = {"reference": reference, "learning_rate": 1e-2, "micro_batch_tokens": 40}
    return run_config(
        model={"path": "a", "dtype": dtype, "lora": lora},
        **({"learner": learner | sections.pop("learner", {})} | sections),
    )


def build(config: RunConfig, seed: int = 0) -> "SelfPlayLearner":
    from iris_ray.learner.self_play_learner import SelfPlayLearner

    return SelfPlayLearner(tiny_model(seed), config, torch.device("cpu"))


def round_pairs(iteration: int) -> Pairs:
    return [replace(pair, iteration=iteration) for pair in make_pairs(8, seed=iteration)]


def with_references(pairs: Pairs, learner: "SelfPlayLearner") -> Pairs:
    """`pairs` as a generator delivers them; `learner` has scored them."""
    return [replace(pair, reference=learner.references[pair.prompt_id][:2].tolist()) for pair in pairs]


def weights(learner: "SelfPlayLearner", opponent: bool = False) -> Weights:
    return {name: weight.clone() for name, weight in learner.weights(opponent)}


def same(one: Weights, other: Weights) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def assert_same_training(config_of: Callable[[str], RunConfig], rounds: int) -> None:
    """A learner with an opponent, and one beside it that gets its references with the pairs.

    Meanwhile the second one is asked for what an opponent on disk is good for, which must not disturb it.
    """
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    held, alone = build(config_of("learner")), build(config_of("generator"))
    losses = set()
    for iteration in range(1, rounds + 1):
        start, probed = weights(alone), alone.token_logprobs(PROBE)
        for learner in (held, alone):
            learner.start_round(iteration, STEPS)
        for step in range(STEPS):
            pairs = round_pairs(iteration)[step % 2 :: 2][rank::ranks]
            result = held.step(pairs, ALPHA)
            given = alone.step(with_references(pairs, held), ALPHA)
            # Losses, rewards, gradient norms, effective sample sizes; and what gaps are estimated from.
            assert result.report == given.report
            assert result.rows.means(held.objective, ALPHA) == given.rows.means(held.objective, ALPHA)
            losses.add(result.report.loss)
        moved, moved_probe = weights(alone), alone.token_logprobs(PROBE)
        assert same(weights(alone, opponent=True), start)
        assert alone.token_logprobs(PROBE, opponent=True) == probed
        assert alone.token_logprobs(PROBE) == moved_probe != probed
        assert same(weights(alone), moved)
        assert same(weights(held), moved)
    assert len(losses) > rounds * (STEPS - 1)


@PLAYERS
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_same_references_give_the_same_training(objective: str, lora: dict | None) -> None:
    def config(kind: str) -> RunConfig:
        return configuration(kind, lora, objective={"name": objective})

    assert_same_training(config, rounds=2)


def spread() -> None:
    for stage, dtype, lora in SPREAD:

        def config(kind: str, stage: int = stage, dtype: str = dtype, lora: dict | None = lora) -> RunConfig:
            return configuration(kind, lora, dtype, learner={"zero_stage": stage})

        assert_same_training(config, rounds=2)


def test_two_ranks_train_the_same_at_every_kind_of_stage() -> None:
    on_ranks(2, spread)


@PLAYERS
def test_there_is_no_second_model(lora: dict | None) -> None:
    def alive() -> int:
        gc.collect()
        return sum(each.numel() for each in gc.get_objects() if type(each) is nn.Parameter)

    before = alive()
    taken = {}
    for kind in ("learner", "generator"):
        learner = build(configuration(kind, lora, learner={"zero_stage": 0}))
        learner.start_round(1, STEPS)
        learner.step([replace(pair, reference=[-9.0, -8.0]) for pair in round_pairs(1)], ALPHA)
        trained = sum(parameter.numel() for _, parameter in learner.players.policy_weights())
        taken[kind] = alive() - before
        names = [name for name, _ in learner.engine.module.named_parameters()]
        assert any("opponent" in name for name in names) == (kind == "learner" and lora is not None)
        del learner
    assert taken["learner"] - taken["generator"] == trained
    whole = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert taken["generator"] == whole + (trained if lora else 0)


@PLAYERS
def test_a_learner_goes_on_in_the_middle_of_a_round(lora: dict | None, tmp_path: Path) -> None:
    from iris_ray.learner.learner_state import RoundProgress, load_learner, save_learner

    def take(
        learner: "SelfPlayLearner", progress: RoundProgress, given: Pairs, until: int
    ) -> list[StepReport]:
        reports = []
        while progress.step < until:
            result = learner.step(given[progress.step % 2 :: 2], ALPHA)
            progress.tail.add(result.rows)
            progress.step += 1
            reports.append(result.report)
        return reports

    scorer = build(configuration("learner", lora))
    scorer.start_round(1, STEPS)
    scorer.score_references(round_pairs(1))
    pairs = with_references(round_pairs(1), scorer)

    config = configuration("generator", lora)
    learner = build(config)
    learner.start_round(1, STEPS)
    opponent, probed = weights(learner), learner.token_logprobs(PROBE)
    progress = RoundProgress(Round(1, 0, ALPHA, 0.0, "why"), STEPS)
    take(learner, progress, pairs, 2)
    plain = json.loads(json.dumps(save_learner(learner, progress, tmp_path)))
    write_pairs(tmp_path / "pairs.parquet", enumerate(pairs))
    rest = take(learner, progress, pairs, STEPS)

    again = build(config, seed=0 if lora else 9)
    progress_again = load_learner(again, plain, tmp_path)
    assert progress_again is not None
    assert same(weights(again, opponent=True), opponent)
    assert again.token_logprobs(PROBE, opponent=True) == probed
    assert not same(weights(again), opponent)
    read = [pair for _, pair in read_pairs(tmp_path / "pairs.parquet")]
    assert take(again, progress_again, read, STEPS) == rest
    assert same(weights(again), weights(learner))
    means = [each.tail.means(learner.objective, ALPHA) for each in (progress, progress_again)]
    assert means[0] == means[1]


def test_nothing_is_kept_of_an_opponent_that_nobody_will_need(tmp_path: Path) -> None:
    from iris_ray.learner.learner_state import RoundProgress, load_learner, save_learner

    config = configuration("generator", None, schedule={"refresh": 8, "epochs": 1})
    learner = build(config)
    learner.start_round(1, STEPS)
    learner.step([replace(pair, reference=[-9.0, -8.0]) for pair in round_pairs(1)], ALPHA)
    plain = save_learner(learner, RoundProgress(Round(1, 0, ALPHA, 0.0, ""), STEPS, 1), tmp_path)
    assert not list(tmp_path.glob("opponent-*"))
    again = build(config, seed=9)
    progress = load_learner(again, plain, tmp_path)
    assert progress is not None
    assert progress.step == 1
    assert same(weights(again), weights(learner))
    for ask in (lambda: weights(again, opponent=True), lambda: again.token_logprobs(PROBE, opponent=True)):
        with pytest.raises(IrisRayError, match="keeps no weights of the opponent"):
            ask()


@pytest.mark.parametrize("reference", [[], [-9.0], [-9.0, -8.0, -7.0]], ids=len)
def test_a_pair_without_a_reference_for_each_response_is_refused(reference: list[float]) -> None:
    learner = build(configuration("generator", None))
    learner.start_round(1, STEPS)
    pair = replace(round_pairs(1)[0], prompt_id=17, reference=reference)
    with pytest.raises(IrisRayError, match=f"prompt 17 has {len(reference)} reference log-probs for 2"):
        learner.step([pair], ALPHA)


def test_objectives_that_look_at_first_responses_are_refused() -> None:
    from iris_ray.preparation import check_names

    for name in [*OBJECTIVES, "tspin"]:
        config = configuration("generator", None, objective={"name": name})
        if name == "tspin":
            with pytest.raises(ConfigError, match=r"learner\.reference: 'generator' does not fit.*tspin"):
                check_names(config)
        else:
            check_names(config)


def test_the_mismatch_of_two_scorings_is_measured() -> None:
    scorer, learner = build(configuration("learner", None)), build(configuration("generator", None))
    for each in (scorer, learner):
        each.start_round(1, STEPS)
    scorer.score_references(round_pairs(1))
    pairs = with_references(round_pairs(1), scorer)
    off = pairs[3]
    pairs[3] = replace(off, reference=[off.reference[0] + 0.5, off.reference[1]])
    report = learner.step(pairs, ALPHA).report
    expected = 0.5 / len(off.real_tokens)
    assert report.abs_reward_max == pytest.approx(expected, rel=1e-4)
    assert report.abs_reward_mean == pytest.approx(expected / 16, rel=1e-3)


@torch.no_grad()
def sequence_logprob(prompt: list[int], response: list[int], temperature: float) -> float:
    """Under the model that every learner starts from."""
    tokens = torch.tensor(prompt + response)
    table = (tiny_model().eval()(tokens[None]).logits[0].double() / temperature).log_softmax(-1)
    at = torch.arange(len(prompt), len(tokens))
    return table[at - 1, tokens[at]].sum().item()


@PLAYERS
@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_the_opponent_is_what_was_sampled_from(temperature: float, lora: dict | None) -> None:
    learner = build(configuration("learner", lora, generation={"temperature": temperature}))
    learner.start_round(1, STEPS)
    probed = learner.token_logprobs(PROBE)
    result = learner.step(round_pairs(1), ALPHA)
    table = result.rows.table

    def expected(t: float) -> torch.Tensor:
        return torch.tensor(
            [[sequence_logprob(p.prompt_tokens, y, t) for y in p.responses] for p in round_pairs(1)],
            dtype=torch.float64,
        )

    tempered, plain = expected(temperature), expected(1.0)
    assert (result.rows.references[:, :2] - tempered).abs().max() < 1e-4
    assert (result.rows.logprobs[:, :2] - plain).abs().max() < 1e-4
    if temperature == 1:
        assert result.report.abs_reward_max < 1e-5
    else:
        assert (tempered - plain).abs().max() > 1
        distances = (plain - tempered).abs() / table[:, -4:-2]
        assert result.report.abs_reward_mean == pytest.approx(distances.mean().item(), rel=1e-4)
        assert result.report.abs_reward_max == pytest.approx(distances.max().item(), rel=1e-4)
    # The probe of published weights is compared with engines that know no temperature there.
    for found, wanted in zip(learner.token_logprobs(PROBE, opponent=True), probed, strict=True):
        assert found == pytest.approx(wanted, abs=1e-5)


def test_each_response_to_a_prompt_has_its_own_reference() -> None:
    learner = build(configuration("learner", None, generation={"n": 2}))
    learner.start_round(1, STEPS)
    first, second = round_pairs(1)[:2]
    second = replace(
        second, prompt_id=0, replica=1, prompt_tokens=first.prompt_tokens, real_tokens=first.real_tokens
    )
    for _ in range(2):
        rows = learner.step([first, second], ALPHA).rows
        expected = [sequence_logprob(first.prompt_tokens, p.synthetic_tokens, 1.0) for p in (first, second)]
        assert rows.references[:, 1].tolist() == pytest.approx(expected, abs=1e-4)
    assert len(learner.references) == 2


def test_kept_weights_come_back_bit_for_bit_and_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr("iris_ray.learner.kept_weights.BUCKET_BYTES", 1000)
    torch.manual_seed(0)
    made = {
        "small": torch.randn(3, 5),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "larger than a bucket": torch.randn(40, 50).bfloat16(),
        "transposed": torch.randn(6, 4).T,
        "not a number": torch.tensor([torch.nan, torch.inf, -0.0]),
    } | {f"many {i}": torch.full((100,), i) for i in range(20)}
    kept = KeptWeights((name, tensor) for name, tensor in made.items())
    assert not list(tmp_path.iterdir())
    for one, other in zip(kept, kept, strict=True):
        assert one[0] == other[0]
        for name, tensor in (one, other):
            assert (tensor.dtype, tensor.shape) == (made[name].dtype, made[name].shape)
            bits = [each.contiguous().reshape(-1).view(torch.uint8) for each in (tensor, made[name])]
            assert torch.equal(*bits)
    assert [name for name, _ in kept] == list(made)
    assert list(KeptWeights([])) == []


def test_generators_cannot_score_at_a_temperature() -> None:
    message = (
        r"learner\.reference \(generator\) needs generation\.temperature \(0\.7\) to be 1.*Set generation"
    )
    with pytest.raises(ConfigError, match=message):
        configuration("generator", None, generation={"temperature": 0.7})
    configuration("generator", None, generation={"top_p": 0.9})
    configuration("learner", None, generation={"temperature": 0.7})
