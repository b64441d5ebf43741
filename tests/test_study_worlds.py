"""The worlds of the method study, and the exact metrics of a model in them."""

import itertools
from collections import Counter

import pytest
import torch
from transformers import Qwen2ForCausalLM

from benchmarks.method.truth import measure
from benchmarks.method.worlds import END, PAIRS, WORLDS, World, build_world
from iris_ray.contracts import Demonstration

LIMIT = 4  # response tokens in the tiny world


@pytest.fixture(scope="module", params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return build_world(request.param, seed=0)


def test_answers_are_a_distribution(world: World) -> None:
    for prompt in world.heldout_prompts:
        answers, probabilities = world.answers(prompt)
        assert len(answers) == len(probabilities) <= 256
        assert len(set(map(tuple, answers))) == len(answers)
        assert probabilities.dtype == torch.float64
        assert probabilities.min() > 0
        assert probabilities.sum().item() == pytest.approx(1, abs=1e-12)
        for answer in answers:
            assert answer.index(END) == len(answer) - 1 < world.max_response_tokens
            assert max(answer) < world.vocabulary <= 24
        assert END not in prompt


def test_annotated_answers_come_from_the_support(world: World) -> None:
    pairs = world.annotate(seed=3)
    assert [pair.prompt_id for pair in pairs] == list(range(PAIRS))
    assert {tuple(pair.prompt_tokens) for pair in pairs} == set(map(tuple, world.train_prompts))
    for pair in pairs[:128]:
        assert pair.response_tokens in world.answers(pair.prompt_tokens)[0]


@pytest.mark.parametrize("name", ["few prompts", "stochastic"])
def test_annotated_answers_are_as_frequent_as_they_should_be(name: str) -> None:
    """First tokens, by how probable they are: over 4096 pairs a share is right to within about 0.03."""
    world = build_world(name, seed=0)
    found: Counter[float] = Counter()
    for seed in range(8):
        for pair in world.annotate(seed):
            found[world.law(pair.prompt_tokens, [])[pair.response_tokens[0]]] += 1
    for share, count in found.items():
        assert count / (8 * PAIRS) == pytest.approx(share, abs=0.03)


def test_worlds_follow_their_seed(world: World) -> None:
    def everything(other: World, seed: int) -> tuple[list[list[int]], list[Demonstration], list[list[int]]]:
        prompt = world.heldout_prompts[0]
        return other.heldout_prompts, other.annotate(seed), other.answers(prompt)[0]

    reference = everything(world, 5)
    assert everything(build_world(world.name, 0), 5) == reference
    assert world.annotate(6) != reference[1] or world.name == "deterministic"  # which has nothing to draw
    another = build_world(world.name, 1)
    assert another.annotate(5) != reference[1]


def test_heldout_prompts_are_new(world: World) -> None:
    if world.name == "few prompts":
        assert world.heldout_prompts == world.train_prompts
    else:
        assert not set(map(tuple, world.heldout_prompts)) & set(map(tuple, world.train_prompts))


def test_the_law_of_the_deterministic_world_sorts() -> None:
    world = build_world("deterministic", seed=0)
    orders = set()
    for prompt in world.heldout_prompts:
        [answer], _ = world.answers(prompt)
        assert sorted(answer[:-1]) == sorted(prompt[:-1])
        orders |= set(itertools.pairwise(dict.fromkeys(answer[:-1])))
    assert not any((later, earlier) in orders for earlier, later in orders)


def test_models_follow_their_seed_and_leave_the_global_random_state(world: World) -> None:
    before = torch.random.get_rng_state()
    first, again, other = (world.build_model(seed) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert first.config.tie_word_embeddings
    assert first.config.num_hidden_layers == world.layers
    weights = [model.get_input_embeddings().weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_metrics_against_all_sequences() -> None:
    """Everything that a model of three tokens can say within four, unfinished answers included."""
    world = _tiny_world()
    model = world.build_model(seed=0)
    kl = tv = validity = 0.0
    for prompt in world.heldout_prompts:
        q = _everything_it_can_say(model, prompt)
        assert sum(q.values()) == pytest.approx(1, abs=1e-5)
        answers, probabilities = world.answers(prompt)
        p = {tuple(answer): share for answer, share in zip(answers, probabilities.tolist(), strict=True)}
        assert set(p) < set(q)
        kl += sum(share * float(torch.tensor(share / q[answer]).log()) for answer, share in p.items())
        tv += sum(abs(p.get(answer, 0.0) - share) for answer, share in q.items()) / 2
        validity += sum(q[answer] for answer in p)
    truth = measure(model, world)
    count = len(world.heldout_prompts)
    assert truth.kl == pytest.approx(kl / count, abs=1e-5)
    assert truth.tv == pytest.approx(tv / count, abs=1e-5)
    assert truth.validity == pytest.approx(validity / count, abs=1e-5)
    entropy = -(0.7 * torch.tensor(0.7).log() + 0.3 * torch.tensor(0.3).log()).item()
    assert truth.nll == pytest.approx(truth.kl + entropy, abs=1e-6)


def test_metrics_follow_the_model() -> None:
    world = _tiny_world()
    model = world.build_model(seed=0)
    before = measure(model, world)
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(2)
    assert measure(model, world) != before


def _tiny_world() -> World:
    """Symbols 1 and 2. Two answers, of different lengths, to each prompt."""

    def law(prompt: list[int], begun: list[int]) -> dict[int, float]:
        if not begun:
            return {1: 0.7, 2: 0.3}
        return {END: 1.0} if len(begun) == 3 or begun[0] == 1 else {prompt[-1]: 1.0}

    return World(
        name="tiny",
        description="",
        vocabulary=3,
        train_prompts=[[1, 2]],
        heldout_prompts=[[2, 2], [2, 1, 1]],
        law=law,
        max_response_tokens=LIMIT,
        warmup_steps=0,
        hidden_size=8,
    )


@torch.inference_mode()
def _everything_it_can_say(model: Qwen2ForCausalLM, prompt: list[int]) -> dict[tuple[int, ...], float]:
    """Probability of each response of up to `LIMIT` tokens, asked for one token after the other."""
    said: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LIMIT):
        longer: dict[tuple[int, ...], float] = {}
        for begun, probability in said.items():
            if begun and begun[-1] == END:
                longer[begun] = probability
                continue
            logits = model(input_ids=torch.tensor([[*prompt, *begun]])).logits[0, -1]
            for token, share in enumerate(logits.double().softmax(0).tolist()):
                longer[*begun, token] = probability * share
        said = longer
    return said
