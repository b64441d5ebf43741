"""The generator's engine: a real vLLM engine whose weights are replaced while it runs."""

import asyncio
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
import torch
from run_process import WAIT_S
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from actors.environment import generator_environment
from benchmarks.sessions import name_of
from iris_ray import lora
from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError, EngineError, ParityError
from iris_ray.generation.stop_tokens import single_tokens
from iris_ray.scratch.tokenizer import START, train_tokenizer
from iris_ray.weights.buckets import pack_buckets, unpack_tensors
from iris_ray.weights.checkpoint_names import CheckpointNames
from iris_ray.weights.manifest import Probe
from iris_ray.weights.parity import check_parity

if TYPE_CHECKING:
    from iris_ray.generation.policy_engine import StagedBucket

END = 1
SEQUENCES = torch.randint(2, 300, (4, 24), generator=torch.Generator().manual_seed(0)).tolist()
PROMPTS = [sequence[:8] for sequence in SEQUENCES]
CONFIG = RunConfig.from_dict(
    {
        "model": {"path": "unused", "dtype": "float32"},
        "data": {"path": "unused", "max_prompt_tokens": 32, "max_response_tokens": 16},
        "generation": {"enforce_eager": True, "concurrency": 256},
    }
)
# A rank that vLLM has no places of its own for.
LORA = lora.Lora(rank=5, alpha=7.5)
LORA_CONFIG = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"lora": LORA})})


SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "initializer_range": 0.2,
    "bos_token_id": None,
    "eos_token_id": END,
}


def tiny_model(seed: int, tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(max_position_embeddings=512, tie_word_embeddings=tied, **SIZES)
    return Qwen2ForCausalLM(config).eval()


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(max_position_embeddings=64, tie_word_embeddings=False, **SIZES)
    return LlamaForCausalLM(config).eval()


def tiny_mixtral(seed: int) -> MixtralForCausalLM:
    torch.manual_seed(seed)
    config = MixtralConfig(
        num_local_experts=4, max_position_embeddings=64, tie_word_embeddings=False, **SIZES
    )
    return MixtralForCausalLM(config).eval()


@torch.no_grad()
def logprobs(model: PreTrainedModel) -> list[list[float]]:
    tokens = torch.tensor(SEQUENCES)
    table = model(tokens).logits.log_softmax(-1)[:, :-1]
    return table.gather(2, tokens[:, 1:, None])[:, :, 0].tolist()


class Running:
    """An engine and the event loop it lives in."""

    def __init__(self, folder: Path, model: PreTrainedModel, config: RunConfig):
        from iris_ray.generation.policy_engine import PolicyEngine

        self.folder = folder
        self.tied = model.config.tie_word_embeddings
        model.save_pretrained(folder / "model")
        self.loop = asyncio.new_event_loop()
        self.engine = PolicyEngine(config, str(folder / "model"), END)
        self.version = -1

    def load(self, model: PreTrainedModel, spoil: bool = False) -> None:
        """Load a model's weights as the generator actor does, in several buckets."""
        self.version += 1
        self.run(self.engine.load_weights(self.version, self.buckets(model, spoil)))

    def buckets(self, model: PreTrainedModel, spoil: bool = False) -> "list[StagedBucket]":
        buckets = []
        shapes = {name: parameter.shape for name, parameter in model.named_parameters()}
        weights = CheckpointNames(model, shapes).of(model.named_parameters())
        for index, (data, tensors) in enumerate(pack_buckets(weights, 100_000)):
            path = self.folder / str(index)
            if spoil and index == 0:
                data[:1000] = 0
            data.numpy().tofile(path)
            buckets.append((path, tensors))
        assert len(buckets) > 2
        return buckets

    def load_adapter(self, model: PreTrainedModel) -> None:
        """Load a model's adapter as the generator actor does, out of buckets."""
        self.version += 1
        buckets = pack_buckets(lora.adapter_tensors(model), 10_000)
        tensors = [pair for data, specs in buckets for pair in unpack_tensors(data, specs)]
        self.run(self.engine.load_adapter(self.version, tensors))

    def run(self, awaitable):
        return self.loop.run_until_complete(awaitable)

    def close(self) -> None:
        self.engine.shutdown()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
            with suppress(asyncio.CancelledError):
                self.run(task)
        self.loop.close()

    def logprobs(self) -> list[list[float]]:
        return self.run(self.engine.logprobs(SEQUENCES))


@contextmanager
def started(folder: Path, model: PreTrainedModel, config: RunConfig = CONFIG) -> Iterator[Running]:
    before = dict(os.environ)
    os.environ.update(generator_environment(config.generation))
    engine = Running(folder, model, config)
    yield engine
    engine.close()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with started(tmp_path_factory.mktemp("engine"), tiny_model(0, request.param)) as engine:
        yield engine


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    # Untied and Llama-shaped: the head that vLLM would adapt too, were it not told otherwise.
    with started(tmp_path_factory.mktemp("engine"), tiny_llama(), LORA_CONFIG) as engine:
        yield engine


@pytest.mark.parametrize("seed", [1, 2])
def test_every_update_lands_whole(running: Running, seed: int) -> None:
    model = tiny_model(seed, running.tied)
    running.load(model)
    difference = check_parity(
        Probe(SEQUENCES, logprobs(model)), running.logprobs(), CONFIG, "generator-0", running.version
    )
    assert difference < 2e-5


def test_every_update_of_a_mixture_of_experts_lands_whole(tmp_path: Path) -> None:
    with started(tmp_path, tiny_mixtral(0)) as running:
        for seed in (1, 2):
            model = tiny_mixtral(seed)
            running.load(model)
            check_parity(Probe(SEQUENCES, logprobs(model)), running.logprobs(), CONFIG, "generator-0", seed)


def test_weights_that_did_not_land_stop_the_run(running: Running) -> None:
    old, new = tiny_model(1, running.tied), tiny_model(2, running.tied)
    running.load(old)
    with pytest.raises(ParityError, match=r"generator-0 does not serve weights version"):
        check_parity(Probe(SEQUENCES, logprobs(new)), running.logprobs(), CONFIG, "generator-0", 2)
    running.load(new, spoil=True)
    with pytest.raises(ParityError):
        check_parity(Probe(SEQUENCES, logprobs(new)), running.logprobs(), CONFIG, "generator-0", 2)


def serves(running: Running, model: Qwen2ForCausalLM) -> bool:
    difference = torch.tensor(running.logprobs()) - torch.tensor(logprobs(model))
    return difference.abs().max().item() < 2e-5


def test_weights_that_are_made_ready_change_nothing_until_they_are_loaded(running: Running) -> None:
    old, new = tiny_model(1, running.tied), tiny_model(2, running.tied)
    running.load(old)
    first, second, *rest = running.buckets(new)
    for path, tensors in (first, second):
        running.run(running.engine.ready_weights(path, tensors))
        path.unlink()
        assert serves(running, old)
    running.run(running.engine.load_weights(7, rest))
    assert serves(running, new)
    for path, tensors in running.buckets(old)[:2]:
        running.run(running.engine.ready_weights(path, tensors))
    running.run(running.engine.drop_weights())
    assert serves(running, new)
    running.load(old)
    assert serves(running, old)


def test_an_engine_that_is_half_updated_answers_nothing_until_a_whole_update(running: Running) -> None:
    old, new = tiny_model(3, running.tied), tiny_model(4, running.tied)
    running.load(old)
    buckets = running.buckets(new)

    def broken() -> "Iterator[StagedBucket]":
        yield from buckets[:2]
        raise OSError("the rest never came")

    for failing in (broken(), buckets[:2]):
        # The engine itself tells when the second one ends: it misses what did not come.
        with pytest.raises(Exception, match=r"the rest never came|an update was not whole"):
            running.run(running.engine.load_weights(1, failing))
        with pytest.raises(TimeoutError):
            running.run(asyncio.wait_for(running.engine.logprobs(SEQUENCES), 1))
    running.load(new)
    assert serves(running, new)


def test_greedy_answers_are_those_of_the_loaded_model(running: Running) -> None:
    model = tiny_model(3, running.tied)
    running.load(model)
    for prompt in PROMPTS:
        answer = running.run(running.engine.generate(prompt, greedy=True))
        tokens = torch.tensor([prompt + answer.tokens])
        best = model(tokens).logits.argmax(-1)[0, len(prompt) - 1 : -1].tolist()
        assert answer.tokens == best


def test_a_seed_decides_the_answer_whatever_runs_beside_it(running: Running) -> None:
    running.load(tiny_model(4, running.tied))

    async def answers(count: int) -> list[list[int]]:
        asked = [running.engine.generate(PROMPTS[i % 4], seed=i) for i in range(count)]
        return [response.tokens for response in await asyncio.gather(*asked)]

    many, few = running.run(answers(8)), running.run(answers(2))
    assert many[:2] == few
    assert many[0] != many[4]  # the same prompt under another seed


def test_seeded_prompts_that_do_not_fit_one_pass_are_answered(running: Running) -> None:
    # Prompts read in pieces make vLLM rewind seeds, which its CPU build cannot do.
    running.load(tiny_model(6, running.tied))

    async def answers() -> list:
        return await asyncio.gather(
            *[running.engine.generate(PROMPTS[i % 4] * 4, seed=i) for i in range(400)]
        )

    assert len(running.run(answers())) == 400


def test_an_answer_ends_with_the_end_token_or_says_that_it_was_cut(running: Running) -> None:
    model = tiny_model(5, running.tied)
    with torch.no_grad():
        model.model.embed_tokens.weight[END] *= 4  # makes the end token likely now and then
    running.load(model)

    async def answers() -> list:
        return await asyncio.gather(*[running.engine.generate(PROMPTS[i % 4], seed=i) for i in range(40)])

    responses = running.run(answers())
    assert {response.finish_reason for response in responses} == {"stop", "length"}
    for response in responses:
        ended = response.finish_reason == "stop"
        assert response.tokens.count(END) == ended
        assert (response.tokens[-1] == END) == ended
        assert ended or len(response.tokens) == CONFIG.data.max_response_tokens


@contextmanager
def sampling(running: Running, **settings) -> Iterator[None]:
    """Change the engine's sampling for a while."""
    before = running.engine.config
    generation = before.generation.model_copy(update=settings)
    running.engine.config = before.model_copy(update={"generation": generation})
    yield
    running.engine.config = before


def answers(running: Running, count: int) -> list[list[int]]:
    async def ask() -> list:
        return await asyncio.gather(*[running.engine.generate(PROMPTS[i % 4], seed=i) for i in range(count)])

    return [response.tokens for response in running.run(ask())]


def ranks_and_shares(model: PreTrainedModel, written: list[list[int]]) -> list[tuple[int, float, float]]:
    """Of each written token: how many are likelier, their probability in all, and p over the largest p."""
    found = []
    for index, tokens in enumerate(written):
        prompt = PROMPTS[index % 4]
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
        for probabilities, token in zip(logits.softmax(-1), tokens, strict=True):
            likelier = probabilities[probabilities > probabilities[token]]
            share = (probabilities[token] / probabilities.max()).item()
            found.append((len(likelier), likelier.sum().item(), share))
    return found


def test_sampling_settings_reach_the_engine(running: Running) -> None:
    model = tiny_model(7, running.tied)
    running.load(model)
    off = ranks_and_shares(model, answers(running, 24))
    with sampling(running, top_k=3):
        limited = ranks_and_shares(model, answers(running, 24))
    assert max(rank for rank, _, _ in limited) == 2 < max(rank for rank, _, _ in off)
    with sampling(running, top_p=0.5):
        limited = ranks_and_shares(model, answers(running, 24))
    assert max(before for _, before, _ in limited) < 0.5 + 1e-3 < max(before for _, before, _ in off)
    with sampling(running, min_p=0.3):
        limited = ranks_and_shares(model, answers(running, 24))
    assert min(share for _, _, share in limited) > 0.3 - 1e-3 > min(share for _, _, share in off)
    with sampling(running, temperature=0.01):
        assert sum(rank for rank, _, _ in ranks_and_shares(model, answers(running, 8))) < 5


def test_no_limit_is_no_limit_however_it_is_written(running: Running) -> None:
    running.load(tiny_model(7, running.tied))
    plain = answers(running, 8)
    for top_k in (0, -1):
        with sampling(running, top_k=top_k):
            assert answers(running, 8) == plain


@pytest.fixture(scope="module")
def speaking(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """An engine behind a gateway; the chat template has an option, and `START` ends responses, too."""
    folder = tmp_path_factory.mktemp("speaking")
    tokenizer = train_tokenizer(["one two three"], 300)
    tokenizer.chat_template = "{% if brief %}Be brief. {% endif %}{{ messages[0].content }}"
    tokenizer.save_pretrained(folder / "model")
    model = tiny_model(5, tied=True)
    with torch.no_grad():
        stop = single_tokens([START], tokenizer)
        model.model.embed_tokens.weight[stop] *= 4  # makes it likely now and then
    sections: dict[str, dict[str, Any]] = {
        "generation": {"stop": [START]},
        "data": {"chat_template_options": {"brief": True}},
        "gateway": {"port": 1},
    }
    changed = {name: getattr(CONFIG, name).model_copy(update=values) for name, values in sections.items()}
    with started(folder, model, CONFIG.model_copy(update=changed)) as running:
        running.load(model)
        yield running


def test_conversations_go_through_the_template_as_the_runs_prompts_do(speaking: Running) -> None:
    messages = [{"role": "user", "content": "one two three"}]
    body = {"model": CONFIG.run.name, "messages": messages, "max_tokens": 1}

    async def ask() -> bytes:
        sent = speaking.engine.respond("POST", "/v1/chat/completions", body)
        return b"".join([message.get("body", b"") async for message in sent])

    tokenizer = AutoTokenizer.from_pretrained(speaking.folder / "model")
    with_option, without = (
        len(tokenizer.apply_chat_template(messages, **options)["input_ids"])
        for options in ({"brief": True}, {})
    )
    assert json.loads(speaking.run(ask()))["usage"]["prompt_tokens"] == with_option > without


def test_a_stop_text_ends_a_response_and_stays_in_it(speaking: Running) -> None:
    tokenizer = AutoTokenizer.from_pretrained(speaking.folder / "model")
    (stop,) = single_tokens([START], tokenizer)
    written = answers(speaking, 40)
    ended = [tokens for tokens in written if tokens[-1] == stop]
    assert ended
    assert all(tokens.index(stop) == len(tokens) - 1 for tokens in ended)
    assert all(stop not in tokens for tokens in written if tokens not in ended)


def test_a_stop_text_of_several_tokens_is_refused() -> None:
    tokenizer = train_tokenizer(["one two three"], 300)
    with pytest.raises(
        ConfigError, match=r"generation.stop: 'one two' is \d tokens of the model's tokenizer"
    ):
        single_tokens([START, "one two"], tokenizer)


def adapted_model(seed: int) -> PreTrainedModel:
    model = lora.add_adapter(tiny_llama(), LORA, seed)
    generator = torch.Generator().manual_seed(seed)
    for _, parameter in lora.adapter_tensors(model):
        parameter.data.normal_(std=0.3, generator=generator)
    return model


@pytest.mark.parametrize("seed", [1, 2])
def test_every_adapter_lands_whole(adapted: Running, seed: int) -> None:
    model = adapted_model(seed)
    assert not torch.allclose(torch.tensor(logprobs(model)), torch.tensor(logprobs(tiny_llama())), atol=1)
    adapted.load_adapter(model)
    difference = check_parity(
        Probe(SEQUENCES, logprobs(model)), adapted.logprobs(), CONFIG, "generator-0", adapted.version
    )
    assert difference < 2e-5


def test_an_adapter_that_changes_nothing_serves_the_model_itself(adapted: Running) -> None:
    adapted.load_adapter(adapted_model(1))
    adapted.load_adapter(lora.add_adapter(tiny_llama(), LORA, seed=0))
    check_parity(Probe(SEQUENCES, logprobs(tiny_llama())), adapted.logprobs(), CONFIG, "generator-0", 0)


def test_greedy_answers_are_those_of_the_loaded_adapter(adapted: Running) -> None:
    model = adapted_model(3)
    adapted.load_adapter(model)
    for prompt in PROMPTS:
        answer = adapted.run(adapted.engine.generate(prompt, greedy=True))
        logits = model(torch.tensor([prompt + answer.tokens])).logits
        assert answer.tokens == logits.argmax(-1)[0, len(prompt) - 1 : -1].tolist()


def test_an_engine_that_dies_while_it_is_asked_is_known_to_be_dead(tmp_path: Path) -> None:
    others = engines()
    with started(tmp_path, tiny_model(0, tied=True)) as running:
        (process,) = engines() - others

        async def ask() -> None:
            await running.engine.check_alive()
            process.suspend()
            asked = asyncio.ensure_future(running.engine.check_alive())
            await asyncio.sleep(2)
            assert not asked.done()
            process.kill()
            await asyncio.wait_for(asked, WAIT_S)

        with pytest.raises(EngineError, match="died"):
            running.run(ask())


def engines() -> set[psutil.Process]:
    children = psutil.Process().children(recursive=True)
    return {process for process in children if name_of(process) == "VLLM::EngineCore"}


def test_on_cpu_the_adapter_is_added_for_the_tokens_that_ask_for_it() -> None:
    from vllm.lora.layers import LoRAMapping

    from iris_ray.weights.vllm_engine import CPULora

    x, a, y = torch.randn(5, 6), torch.randn(2, 1, 1, 3, 6), torch.randn(5, 7)
    b = (torch.randn(1, 1, 4, 3), torch.randn(1, 1, 3, 3))
    wrapper = CPULora(16, max_batches=4, device="cpu")
    id_ = 8
    # Two requests of three and two tokens; the second asks for no adapter.
    wrapper.update_metadata(LoRAMapping((id_, id_, id_, 0, 0), (id_, 0), is_prefill=True), [id_], 2, 300)
    expected = y.clone()
    expected[:3] += 0.5 * torch.cat([x[:3] @ a[i, 0, 0].T @ b[i][0, 0].T for i in range(2)], dim=1)
    wrapper.add_lora_linear(y, x, (a[0], a[1]), b, 0.5, (4, 3))
    torch.testing.assert_close(y, expected)
