"""The generator's engine: a real vLLM engine whose weights are replaced while it runs."""

import asyncio
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM

from actors.environment import generator_environment
from iris_ray import lora
from iris_ray.config import RunConfig
from iris_ray.errors import ParityError
from iris_ray.weights.buckets import pack_buckets, unpack_tensors
from iris_ray.weights.manifest import Probe
from iris_ray.weights.parity import check_parity

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


def tiny_model(seed: int, tied: bool) -> Qwen2ForCausalLM:
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=tied,
        bos_token_id=None,
        eos_token_id=END,
    )
    return Qwen2ForCausalLM(config).eval()


def tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END,
    )
    return LlamaForCausalLM(config).eval()


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

    def load(self, model: Qwen2ForCausalLM, spoil: bool = False) -> None:
        """Load a model's weights as the generator actor does, in several buckets."""
        self.version += 1
        buckets = []
        for index, (data, tensors) in enumerate(pack_buckets(model.named_parameters(), 100_000)):
            path = self.folder / str(index)
            if spoil and index == 0:
                data[:1000] = 0
            data.numpy().tofile(path)
            buckets.append((path, tensors))
        assert len(buckets) > 1
        self.run(self.engine.load_weights(self.version, buckets))

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


def test_weights_that_did_not_land_stop_the_run(running: Running) -> None:
    old, new = tiny_model(1, running.tied), tiny_model(2, running.tied)
    running.load(old)
    with pytest.raises(ParityError, match=r"generator-0 does not serve weights version"):
        check_parity(Probe(SEQUENCES, logprobs(new)), running.logprobs(), CONFIG, "generator-0", 2)
    running.load(new, spoil=True)
    with pytest.raises(ParityError):
        check_parity(Probe(SEQUENCES, logprobs(new)), running.logprobs(), CONFIG, "generator-0", 2)


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
