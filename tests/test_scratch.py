"""The made task, tokenizer and model, and the warm-up by SFT."""

import math

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast, Qwen2ForCausalLM

from iris_ray.config import ScratchModel, SortDigits
from iris_ray.contracts import Demonstration
from iris_ray.errors import DataError
from iris_ray.scratch.model import build_model
from iris_ray.scratch.sort_digits import make_rows
from iris_ray.scratch.tokenizer import train_tokenizer
from iris_ray.scratch.warmup import greedy, warm_up

TEXT = "Nätalia  sold 48/2 = <<48/2=24>>24 clips,\n\n\t漢字 🙂  #### 24 "
TINY = ScratchModel(hidden_size=64, intermediate_size=128, layers=2, heads=2, kv_heads=1, warmup_steps=120)
TASK = SortDigits(examples=512, min_digits=1, max_digits=4)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    return make_rows(TASK, holdout=32, seed=0)


@pytest.fixture(scope="module")
def tokenizer(rows: list[dict[str, str]]) -> PreTrainedTokenizerFast:
    return train_tokenizer((text for row in rows for text in row.values()), vocab_size=512)


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> Qwen2ForCausalLM:
    return build_model(TINY, tokenizer, max_length=64, seed=0)


@pytest.fixture(scope="module")
def demonstrations(rows: list[dict[str, str]], tokenizer: PreTrainedTokenizerFast) -> list[Demonstration]:
    return [
        Demonstration(
            prompt_id,
            tokenizer.encode(row["prompt"] + "="),
            [*tokenizer.encode(row["response"]), tokenizer.eos_token_id],
        )
        for prompt_id, row in enumerate(rows)
    ]


def test_rows_are_distinct_sorted_and_repeatable(rows: list[dict[str, str]]) -> None:
    assert rows == make_rows(TASK, holdout=32, seed=0)
    assert rows != make_rows(TASK, holdout=32, seed=1)
    assert len({row["prompt"] for row in rows}) == len(rows) == 544
    assert all(row["response"] == "".join(sorted(row["prompt"].removeprefix("sort "))) for row in rows)


def test_all_rows_of_a_task_can_be_had() -> None:
    assert len(make_rows(SortDigits(examples=100, min_digits=1, max_digits=2), holdout=10, seed=0)) == 110


def test_too_many_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"sort_digits.examples \(101\).* only 110\. Raise"):
        make_rows(SortDigits(examples=101, min_digits=1, max_digits=2), holdout=10, seed=0)


def test_a_digit_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("sort 529") == ["sort", "Ġ", "5", "2", "9"]


def test_chat_template(tokenizer: PreTrainedTokenizerFast) -> None:
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "sort 1"}], add_generation_prompt=True, return_dict=False
    )
    expected = [
        "<|im_start|>",
        "user",
        "Ċ",
        "sort",
        "Ġ",
        "1",
        "<|im_end|>",
        "Ċ",
        "<|im_start|>",
        "assistant",
        "Ċ",
    ]
    assert tokenizer.convert_ids_to_tokens(ids) == expected


def test_saved_beside_the_model_both_come_back_the_same(tokenizer, model, tmp_path) -> None:
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.decode(again.encode(TEXT)) == TEXT
    assert again.chat_template == tokenizer.chat_template
    assert (again.eos_token, again.pad_token) == ("<|im_end|>", "<|endoftext|>")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.generation_config.eos_token_id == loaded.config.eos_token_id == again.eos_token_id
    assert loaded.generation_config.pad_token_id == loaded.config.pad_token_id == again.pad_token_id
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, loaded.state_dict()[name]), name


def test_model_is_tied_float32_and_repeatable(tokenizer, model) -> None:
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.dtype == torch.float32
    before = torch.get_rng_state()
    again = build_model(TINY, tokenizer, max_length=64, seed=0)
    assert torch.equal(again.lm_head.weight, model.lm_head.weight)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_vocabulary_may_be_padded(tokenizer) -> None:
    padded = TINY.model_copy(update={"padded_vocab_size": 1000})
    assert build_model(padded, tokenizer, max_length=64, seed=0).get_input_embeddings().num_embeddings == 1000
    few = TINY.model_copy(update={"padded_vocab_size": 3})
    rows = build_model(few, tokenizer, max_length=64, seed=0).get_input_embeddings().num_embeddings
    assert rows == len(tokenizer)


def test_a_made_mistral_comes_back_the_same(rows, tmp_path) -> None:
    texts = [text for row in rows for text in row.values()]
    tokenizer = train_tokenizer(texts, 400, "mistral")
    model = build_model(TINY, tokenizer, max_length=64, seed=0, architecture="mistral")
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    tokenizer.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, loaded = AutoTokenizer.from_pretrained(tmp_path), AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.encode(TEXT) == tokenizer.encode(TEXT)
    assert again.decode(again.encode(TEXT), skip_special_tokens=True) == TEXT
    assert again.chat_template == tokenizer.chat_template
    assert loaded.config.model_type == "mistral"
    assert loaded.config.eos_token_id == again.eos_token_id == again.convert_tokens_to_ids("</s>")


def test_batched_greedy_equals_one_token_at_a_time(model, demonstrations) -> None:
    torch.manual_seed(0)
    for parameter in model.parameters():  # far from uniform logits: no near ties
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    prompts = [item.prompt_tokens for item in demonstrations[:16]]
    assert len(set(map(len, prompts))) > 1
    end = greedy(model, prompts, 8, end_token_id=0)[0][4]
    for prompt, written in zip(prompts, greedy(model, prompts, 8, end), strict=True):
        tokens: list[int] = []
        while len(tokens) < 8 and tokens[-1:] != [end]:
            tokens.append(model(torch.tensor([prompt + tokens])).logits[0, -1].argmax().item())
        assert written == tokens


def test_warm_up_learns_and_stops_at_the_threshold(tokenizer, model, demonstrations) -> None:
    seen: list[tuple[int, float, float | None]] = []
    spec = TINY.model_copy(update={"stop_at_exact_match": 0.2})
    result = warm_up(
        model,
        demonstrations[32:],
        demonstrations[:32],
        spec,
        seed=0,
        end_token_id=tokenizer.eos_token_id,
        progress=lambda step, total, loss, exact_match: seen.append((step, loss, exact_match)),
    )
    measured = [match for _, _, match in seen if match is not None]
    assert result.exact_match == measured[-1] >= 0.2
    assert all(match < 0.2 for match in measured[:-1])
    assert result.steps == len(seen) < spec.warmup_steps
    assert result.loss == seen[-1][1] < seen[0][1] / 2


def test_warm_up_without_a_threshold_takes_every_step(tokenizer, model, demonstrations) -> None:
    spec = TINY.model_copy(update={"warmup_steps": 3})
    result = warm_up(
        model, demonstrations, [], spec, seed=0, end_token_id=tokenizer.eos_token_id, progress=lambda *_: None
    )
    assert (result.steps, result.exact_match) == (3, None)
    assert math.isfinite(result.loss)
