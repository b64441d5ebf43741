"""Responses under way while a real vLLM engine's weights are replaced."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch
from test_policy_engine import Running, sampling, started, tiny_model
from transformers import Qwen2ForCausalLM

from iris_ray.config import RunConfig
from iris_ray.contracts import VersionSpan

if TYPE_CHECKING:
    from iris_ray.generation.policy_engine import Response, StagedBucket

LENGTH = 260  # tokens of a response, unless it meets the end token
CONCURRENCY = 3
ATTEMPTS = 5
# Longer than a block of the engine's cache, so that a later request could find the first one.
PROMPTS = torch.randint(2, 300, (4, 150), generator=torch.Generator().manual_seed(1)).tolist()
OLD, NEW = tiny_model(1, tied=True), tiny_model(2, tied=True)


def config(in_flight: str) -> RunConfig:
    return RunConfig.from_dict(
        {
            "model": {"path": "unused", "dtype": "float32"},
            "data": {"path": "unused", "max_prompt_tokens": 160, "max_response_tokens": LENGTH},
            "learner": {"reference": "generator"},
            "generation": {"enforce_eager": True, "concurrency": CONCURRENCY, "in_flight": in_flight},
        }
    )


@pytest.fixture(scope="module")
def resubmitting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("engine"), OLD, config("resubmit")) as engine:
        yield engine


@pytest.fixture(scope="module")
def continuing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("engine"), OLD, config("continue")) as engine:
        yield engine


def across_an_update(
    running: Running,
    *requests: Callable[[], Coroutine[Any, Any, Any]],
    crossing: int = 1,
    sampled: bool = False,
) -> list[Any]:
    """What `requests` return when new weights come while the first one, a response, has its first tokens.

    While it is still under way afterwards, the engine passes a probe; a `sampled` one may meet the end token
    before. Where the machine was so busy that one of the first `crossing` ended too soon, all is done again.
    """
    engine = running.engine
    finishes = engine.config.generation.in_flight == "finish"

    async def play() -> list[Any] | None:
        under_way = [asyncio.create_task(request()) for request in requests]
        states = engine._engine.output_processor.request_states
        while not under_way[0].done():
            if any(state.detokenizer.num_output_tokens() > 5 for state in states.values()):
                break
            await asyncio.sleep(0.001)
        running.version += 1
        await engine.load_weights(running.version, running.buckets(NEW))
        (scored,) = await engine.logprobs(PROMPTS[:1])
        still_under_way = not under_way[0].done()
        torch.testing.assert_close(torch.tensor(scored), logprobs(NEW, PROMPTS[0]), rtol=0, atol=2e-5)
        answers = await asyncio.gather(*under_way)
        crossed = all(len(each.version_spans) == 2 for each in answers[:crossing])
        return answers if finishes or (crossed and (sampled or still_under_way)) else None

    for _ in range(ATTEMPTS):
        running.load(OLD)
        if answers := running.run(play()):
            return answers
    pytest.fail("no response was still under way after an update")


@torch.no_grad()
def logprobs(model: Qwen2ForCausalLM, tokens: list[int]) -> torch.Tensor:
    """log p of every token but the first."""
    table = model(torch.tensor([tokens])).logits[0, :-1].log_softmax(-1)
    return table.gather(1, torch.tensor(tokens[1:])[:, None])[:, 0]


@torch.no_grad()
def likeliest(model: Qwen2ForCausalLM, prompt: list[int], response: list[int]) -> list[int]:
    """The likeliest token wherever a token of `response` stands."""
    logits = model(torch.tensor([prompt + response])).logits
    return logits.argmax(-1)[0, len(prompt) - 1 : -1].tolist()


def parts(running: Running, response: "Response") -> tuple[list[int], list[int]]:
    """The tokens that the old weights wrote, and the new ones'."""
    old, new = response.version_spans
    assert (old.version, new.version) == (running.version - 1, running.version)
    assert old.tokens + new.tokens == len(response.tokens)
    return response.tokens[: old.tokens], response.tokens[old.tokens :]


def greedy(running: Running, prompt: list[int]) -> Callable[[], Coroutine]:
    return partial(running.engine.generate, prompt, greedy=True, with_logprob=True)


def test_finish_one_version_writes_a_response(resubmitting: Running) -> None:
    with sampling(resubmitting, in_flight="finish"):
        (response,) = across_an_update(resubmitting, greedy(resubmitting, PROMPTS[0]))
    assert response.version_spans == [VersionSpan(resubmitting.version - 1, LENGTH)]
    assert response.tokens == likeliest(OLD, PROMPTS[0], response.tokens)


def test_resubmit_new_tokens_follow_the_new_weights_alone(resubmitting: Running) -> None:
    requests = [greedy(resubmitting, prompt) for prompt in PROMPTS[:2]]
    responses = across_an_update(resubmitting, *requests, crossing=2)
    for prompt, response in zip(PROMPTS, responses, strict=False):
        old, new = parts(resubmitting, response)
        assert old == likeliest(OLD, prompt, old)
        assert new == likeliest(NEW, prompt + old, new)
        assert new != likeliest(OLD, prompt + old, new)
        expected = logprobs(OLD, prompt + old)[-len(old) :].sum()
        expected += logprobs(NEW, prompt + response.tokens)[-len(new) :].sum()
        assert response.logprob == pytest.approx(expected.item(), abs=1e-3)


@torch.no_grad()
def test_continue_new_tokens_follow_the_new_weights_and_the_old_keys_and_values(continuing: Running) -> None:
    requests = [greedy(continuing, prompt) for prompt in PROMPTS[:2]]
    responses = across_an_update(continuing, *requests, crossing=2)
    for prompt, response in zip(PROMPTS, responses, strict=False):
        old, new = parts(continuing, response)
        assert old == likeliest(OLD, prompt, old)
        kept = OLD(torch.tensor([prompt + old[:-1]]), use_cache=True).past_key_values
        logits = NEW(torch.tensor([old[-1:] + new[:-1]]), past_key_values=kept).logits
        assert new == logits.argmax(-1)[0].tolist()
        assert new != likeliest(NEW, prompt + old, new)


@pytest.mark.parametrize("mode", ["resubmitting", "continuing"])
def test_what_is_begun_after_an_update_finds_no_old_keys_and_values(
    mode: str, request: pytest.FixtureRequest
) -> None:
    """Two requests with a prompt that is under way: one waited for room meanwhile, one comes later."""
    running: Running = request.getfixturevalue(mode)
    *_, waited = across_an_update(running, *[greedy(running, PROMPTS[0])] * (CONCURRENCY + 1))
    for response in (waited, running.run(running.engine.generate(PROMPTS[0], greedy=True))):
        assert response.version_spans == [VersionSpan(running.version, LENGTH)]
        assert response.tokens == likeliest(NEW, PROMPTS[0], response.tokens)


@pytest.mark.parametrize("mode", ["resubmitting", "continuing"])
def test_seeded_responses_cross_an_update(mode: str, request: pytest.FixtureRequest) -> None:
    running: Running = request.getfixturevalue(mode)
    running.load(OLD)

    async def seeded(seed: int) -> "Response":
        return await running.engine.generate(PROMPTS[seed % 4], seed=seed, with_logprob=True)

    alone = running.run(seeded(0))
    requests = [partial(seeded, seed) for seed in range(2 * CONCURRENCY)]
    first, *others = across_an_update(running, *requests, sampled=True)
    old, new = parts(running, first)
    assert old == alone.tokens[: len(old)]
    assert new != alone.tokens[len(old) :]
    for response in others:
        assert sum(span.tokens for span in response.version_spans) == len(response.tokens)


def test_a_score_that_an_update_overtakes_is_the_new_weights(continuing: Running) -> None:
    responses = [PROMPTS[1][:9], PROMPTS[2][:5]]
    continuing.load(OLD)

    async def overtaken() -> tuple[list[float], int]:
        first, *rest = continuing.buckets(NEW)
        scoring = []

        async def buckets() -> "AsyncIterator[StagedBucket]":
            yield first
            scoring.append(asyncio.create_task(continuing.engine.score(PROMPTS[3], responses)))
            await asyncio.sleep(0.1)  # it is in the engine, which stands still
            for bucket in rest:
                yield bucket

        continuing.version += 1
        await continuing.engine.load_weights(continuing.version, buckets())
        return await scoring[0]

    scores, version = continuing.run(overtaken())
    assert version == continuing.version
    expected = [logprobs(NEW, PROMPTS[3] + tokens)[-len(tokens) :].sum().item() for tokens in responses]
    assert scores == pytest.approx(expected, abs=1e-3)
