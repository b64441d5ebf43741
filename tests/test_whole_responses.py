"""A scheduler that holds tokens back until their response ends: within a real vLLM engine."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from conftest import SIZES
from transformers import LlamaConfig, LlamaForCausalLM

from actors.environment import generator_environment
from iris_ray.config import Generation

if TYPE_CHECKING:
    from vllm import LLM, RequestOutput

PROMPTS = [[3, 4, 5], [6, 7, 8, 9], [10, 11]]
LENGTHS = [4, 12, 20]
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1}  # of a width that vLLM knows


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[LLM]":
    """An engine in this process."""
    folder = tmp_path_factory.mktemp("model")
    LlamaForCausalLM(LlamaConfig(**SIZES | HEADS)).save_pretrained(folder)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            generator_environment(Generation()) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
        ).items():
            patch.setenv(name, value)
        from vllm import LLM

        from iris_ray.generation.policy_engine import IN_ENGINE, WHOLE_RESPONSES

        yield LLM(
            str(folder),
            skip_tokenizer_init=True,
            dtype="float32",
            enforce_eager=True,
            distributed_executor_backend=IN_ENGINE,
            scheduler_cls=WHOLE_RESPONSES,
        )


def sampling(max_tokens: int, **options: Any) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    whole = {"output_kind": RequestOutputKind.FINAL_ONLY, "detokenize": False}
    return SamplingParams(
        temperature=0, max_tokens=max_tokens, ignore_eos=True, logprobs=0, **whole | options
    )


def write(llm: "LLM", **options: Any) -> None:
    """Ask for a response to each prompt."""
    for index, (prompt, length) in enumerate(zip(PROMPTS, LENGTHS, strict=True)):
        llm.llm_engine.add_request(str(index), {"prompt_token_ids": prompt}, sampling(length, **options))


def steps(llm: "LLM") -> "list[list[RequestOutput]]":
    """What reached the engine's client in each step, until all responses have ended."""
    taken = []
    while llm.llm_engine.has_unfinished_requests():
        taken.append(llm.llm_engine.step())
    return taken


def held_back(llm: "LLM") -> dict[str, Any]:
    return llm.llm_engine.engine_core.engine_core.scheduler._begun


def test_a_response_is_what_its_tokens_were_one_by_one(llm: "LLM") -> None:
    from vllm.sampling_params import RequestOutputKind

    write(llm, output_kind=RequestOutputKind.CUMULATIVE)
    apart = steps(llm)
    assert len(apart) == max(LENGTHS)
    assert [len(taken) for taken in apart[: min(LENGTHS)]] == [len(PROMPTS)] * min(LENGTHS)
    write(llm)
    whole = steps(llm)
    assert not held_back(llm)
    last = {output.request_id: output.outputs[0] for taken in apart for output in taken}
    for index, length in enumerate(LENGTHS):
        (output,) = whole[length - 1]  # and in no other step
        response, expected = output.outputs[0], last[output.request_id]
        assert output.request_id == str(index)
        assert len(response.token_ids) == length
        assert response.token_ids == expected.token_ids
        assert response.logprobs == expected.logprobs
        assert response.cumulative_logprob == pytest.approx(expected.cumulative_logprob)
        assert response.finish_reason == "length"
    assert sum(map(len, whole)) == len(PROMPTS)


def test_a_prompt_s_log_probs_come_with_its_response(llm: "LLM") -> None:
    write(llm, prompt_logprobs=0)
    outputs = [output for taken in steps(llm) for output in taken]
    assert len(outputs) == len(PROMPTS)
    for output in outputs:
        likelihoods = output.prompt_logprobs[1:]
        assert [token for at in likelihoods for token in at] == output.prompt_token_ids[1:]


def test_nothing_is_kept_of_a_response_that_nobody_waits_for(llm: "LLM") -> None:
    write(llm)
    llm.llm_engine.step()
    assert len(held_back(llm)) == len(PROMPTS)
    llm.llm_engine.abort_request(["1"])
    assert [output.request_id for taken in steps(llm) for output in taken] == ["0", "2"]
    assert not held_back(llm)
