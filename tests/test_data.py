import json
from pathlib import Path
from unittest.mock import Mock

import datasets
import fsspec
import pytest
from datasets import Dataset, DatasetDict
from huggingface_hub import constants
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from iris_ray.config import Data, RunConfig
from iris_ray.data import sources
from iris_ray.data.copies import copied
from iris_ray.data.prepare import load_prepared, prepare_data
from iris_ray.data.report import Dropped
from iris_ray.data.rows import BadRow, Rows, read_rows
from iris_ray.data.splits import demonstration, load_split
from iris_ray.data.tokens import Encoder
from iris_ray.errors import ConfigError, DataError, ModelError
from iris_ray.scratch.tokenizer import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# As Gemma's: a turn ends with a token of its own, and the end token stands at most behind it, as in Phi-3's.
TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% else %}{{ eos_token }}{% endif %}"
)
ROWS = [{"prompt": f"What is {i} plus 1?", "response": f"It is {i + 1}."} for i in range(20)]
CHAT = [
    {"role": "system", "content": "Be short."},
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "What is 1 plus 1?"},
    {"role": "assistant", "content": "It is 2."},
]
GSM8K = Path(__file__).parents[2] / "shared/data/gsm8k/train.jsonl"


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture(scope="module")
def trained():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<bos>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([text for row in ROWS for text in row.values()], trainer)
    return tokenizer


@pytest.fixture
def tokenizer(trained):
    return PreTrainedTokenizerFast(tokenizer_object=trained, eos_token="<|im_end|>", chat_template=CHATML)


@pytest.fixture
def turn_tokenizer(trained):
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(trained.to_str()),
        eos_token="<eos>",
        additional_special_tokens=["<end_of_turn>"],
        chat_template=TURNS,
    )


@pytest.fixture
def plain_tokenizer(trained):
    """No chat template, and a BOS before every text, as most base models have it."""
    with_bos = Tokenizer.from_str(trained.to_str())
    with_bos.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", trained.token_to_id("<bos>"))]
    )
    return PreTrainedTokenizerFast(tokenizer_object=with_bos, bos_token="<bos>", eos_token="<|im_end|>")


def write_lines(path, rows):
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def problems(data):
    return {row.number: row.problem for row in read_rows(data) if row.problem}


def config(path, seed=0, **data):
    return RunConfig.from_dict(
        {"run": {"seed": seed}, "model": {"path": "m"}, "data": {"path": str(path), "holdout": 4, **data}}
    )


def prepare(config, tokenizer, folder):
    return prepare_data(read_rows(config.data), tokenizer, config, folder)


# --- sources -------------------------------------------------------------------------------------------


def save(kind, folder, rows=ROWS):
    """Write the rows in one of the formats that can be read and return the path."""
    path = folder / f"data.{kind}"
    table = Dataset.from_list(rows)
    match kind:
        case "jsonl":
            write_lines(path, rows)
        case "json":
            path.write_text(json.dumps(rows, indent=1))
        case "csv":
            table.to_csv(path)
        case "parquet":
            table.to_parquet(path)
        case "saved":
            table.save_to_disk(path)
        case "splits":
            DatasetDict(train=table, test=table.select([0])).save_to_disk(path)
    return str(path)


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "parquet", "saved", "splits"])
def test_every_source_gives_the_same_rows(kind, tmp_path):
    rows = list(read_rows(Data(path=save(kind, tmp_path))))
    assert [row.number for row in rows] == list(range(1, 21))
    assert rows[3].messages == [
        {"role": "user", "content": "What is 3 plus 1?"},
        {"role": "assistant", "content": "It is 4."},
    ]


@pytest.mark.parametrize("scheme", ["file", "memory"])
@pytest.mark.parametrize("kind", ["jsonl", "csv", "saved", "splits"])
def test_sources_may_lie_elsewhere(kind, scheme, tmp_path):
    path = save(kind, tmp_path)
    if scheme == "memory":
        fsspec.filesystem("memory").put(path, path, recursive=True)
    assert list(read_rows(Data(path=f"{scheme}://{path}"))) == list(read_rows(Data(path=path)))


def test_a_source_elsewhere_is_copied_again_when_it_changed(tmp_path):
    path = save("jsonl", tmp_path)
    first = copied(f"file://{path}")
    inode = first.stat().st_ino
    assert copied(f"file://{path}") == first
    assert first.stat().st_ino == inode
    save("jsonl", tmp_path, ROWS[:3])
    assert len(list(read_rows(Data(path=f"file://{path}")))) == 3


def test_a_source_elsewhere_that_cannot_be_read(tmp_path, monkeypatch):
    missing = f"file://{tmp_path}/none.jsonl"
    with pytest.raises(DataError, match=rf"data\.path={missing}: nothing lies there"):
        read_rows(Data(path=missing))
    with pytest.raises(ConfigError, match=r"data\.path=nowhere://x\.jsonl: no such kind of storage"):
        read_rows(Data(path="nowhere://x.jsonl"))
    path = save("jsonl", tmp_path)
    monkeypatch.setattr("pyarrow.fs.copy_files", Mock(side_effect=OSError("it went away")))
    with pytest.raises(DataError, match=r"cannot be read \(it went away\)"):
        read_rows(Data(path=f"file://{path}"))
    monkeypatch.undo()
    assert copied(f"file://{path}").parents[2] == Path(datasets.config.HF_DATASETS_CACHE)


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet", "saved"])
def test_messages_are_used_where_present(kind, tmp_path):
    path = save(kind, tmp_path, [{"prompt": "not", "response": "used", "messages": CHAT}])
    assert [row.messages for row in read_rows(Data(path=path))] == [CHAT]


def test_json_may_hold_lines(tmp_path):
    path = write_lines(tmp_path / "data.json", ROWS)
    assert len(list(read_rows(Data(path=str(path))))) == 20


def test_csv_columns_are_text(tmp_path):
    (tmp_path / "data.csv").write_text("prompt,response\nseven,007\nmissing,NA\n")
    rows = read_rows(Data(path=str(tmp_path / "data.csv")))
    assert [row.messages[-1]["content"] for row in rows] == ["007", "NA"]


def test_limit(tmp_path):
    assert len(list(read_rows(Data(path=save("jsonl", tmp_path), limit=3)))) == 3


def test_split(tmp_path):
    path = save("splits", tmp_path)
    assert len(list(read_rows(Data(path=path, split="test")))) == 1
    with pytest.raises(DataError, match=r"data.split=dev: .*no such split. Set one of: train, test"):
        read_rows(Data(path=path, split="dev"))


def test_saved_folder_stays_as_it_was(tmp_path, tokenizer):
    path = save("saved", tmp_path)
    before = sorted(Path(path).iterdir())
    prepare(config(path), tokenizer, tmp_path / "run")
    assert sorted(Path(path).iterdir()) == before


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing.jsonl", None, "does not exist"),
        ("folder/a/b", None, "does not exist"),
        ("data.txt", "hello", r"suffix '.txt'. Use a file with one of: .jsonl, .json, .csv, .parquet"),
        ("empty.jsonl", "", "has no rows"),
        ("blank.jsonl", "\n\n", "no JSON object in its first 100 lines"),
        ("empty.json", "[]", "has no rows"),
        ("header.csv", "prompt,response\n", "has no rows"),
        ("broken.json", '[{"prompt": "a", "resp', "cannot be read"),
        ("broken.csv", "prompt,response\na,b\na,b,c\n", "cannot be read: .*line 3"),
        (
            "shifted.csv",
            "prompt,response\na,b,c\n",
            "cannot be read: its header has 2 fields, its first row 3",
        ),
        ("broken.parquet", "hello", "cannot be read"),
        ("latin.jsonl", '{"prompt": "\udce9"}', "cannot be read: .*utf-8"),
    ],
)
def test_unreadable_files(name, text, message, tmp_path):
    if text is not None:
        (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=f"data.path: .*{message}"):
        read_rows(Data(path=str(tmp_path / name)))


def test_other_folder(tmp_path):
    with pytest.raises(DataError, match=r"cannot be read: .*Is it a folder saved by `datasets`"):
        read_rows(Data(path=str(tmp_path)))


def test_unreachable_hub_fails_soon(monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(
        DataError, match=r"data.path: nobody/nothing is no file or folder here.*HF_HUB_OFFLINE"
    ):
        read_rows(Data(path="nobody/nothing"))


def test_hub_data_set_of_several_configurations(tmp_path, monkeypatch):
    several = [{"config_name": name, "data_files": f"{name}.jsonl"} for name in ("main", "socratic")]
    (tmp_path / "README.md").write_text(f"---\n{json.dumps({'configs': several})}\n---\n")
    for name in ("main", "socratic"):
        write_lines(tmp_path / f"{name}.jsonl", [{"prompt": "1+1?", "response": name}])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    # As the hub's own: `datasets` takes a folder laid out like one.
    assert len(sources._open_hub(str(tmp_path), "socratic")["train"]) == 1
    with pytest.raises(DataError, match=r"data\.config: .* has several\. Set one of: main, socratic\."):
        sources._open_hub(str(tmp_path), None)
    with pytest.raises(DataError, match=r"'other' not found\. Available: \['main', 'socratic'\]"):
        sources._open_hub(str(tmp_path), "other")


# --- rows ----------------------------------------------------------------------------------------------


def test_gsm8k_columns(tmp_path):
    path = str(write_lines(tmp_path / "gsm8k.jsonl", [{"question": "1+1?", "answer": "#### 2"}]))
    with pytest.raises(
        DataError, match=r"data.prompt_column=prompt and data.response_column=response: "
    ) as error:
        read_rows(Data(path=path))
    assert "Its columns are: question, answer." in str(error.value)
    assert "for instance data.prompt_column=question data.response_column=answer" in str(error.value)
    (row,) = read_rows(Data(path=path, prompt_column="question", response_column="answer"))
    assert row.messages[-1]["content"] == "#### 2"


def test_wrong_column_among_several(tmp_path):
    path = save("csv", tmp_path, [{"id": "1", "prompt": "a", "answer": "b"}])
    with pytest.raises(
        DataError, match=r"^data.response_column=response: .*id, prompt, answer.*messages_column"
    ):
        read_rows(Data(path=path))


def test_first_rounds(tmp_path):
    chats = [CHAT, CHAT[1:3], CHAT[:2], [CHAT[0], *CHAT[1:3], CHAT[2], CHAT[3]]]
    path = str(write_lines(tmp_path / "data.jsonl", [{"messages": chat} for chat in chats]))
    first = list(read_rows(Data(path=path, rounds=1)))
    assert [row.messages for row in first] == [CHAT[:3], CHAT[1:3], [], CHAT[:3]]
    assert first[2].problem == "does not end with an assistant turn"
    assert [len(row.messages) for row in read_rows(Data(path=path, rounds=2))] == [5, 2, 0, 4]


def test_malformed_lines_are_named(tmp_path):
    lines = [
        "{broken",
        {"prompt": "a", "response": "b"},
        "",
        [1],
        {"prompt": 3, "response": "b"},
        {"prompt": "a"},
        {"prompt": "a", "response": None},
        {"prompt": "a", "response": " \n"},
        {"prompt": " ", "response": "b"},
        {"prompt": "a", "response": "\ud800"},
    ]
    assert problems(Data(path=str(write_lines(tmp_path / "data.jsonl", lines)))) == {
        1: "is not valid JSON",
        4: "is not a JSON object",
        5: "'prompt' is missing or not text",
        6: "'response' is missing or not text",
        7: "'response' is missing or not text",
        8: "empty response",
        9: "empty prompt",
        10: "is not valid Unicode",
    }


def test_malformed_messages_are_named(tmp_path):
    user, assistant = CHAT[1:3]
    chats = ["text", [1], [{"role": "user"}, assistant], [user], [], [assistant], [user, assistant]]
    path = write_lines(tmp_path / "data.jsonl", [{"messages": chat} for chat in chats])
    assert problems(Data(path=str(path))) == {
        1: "'messages' is not a list of messages",
        2: "'messages' is not a list of messages",
        3: "'messages' has a message whose role or content is missing or not text",
        4: "does not end with an assistant turn",
        5: "does not end with an assistant turn",
        6: "empty prompt",
    }


def test_other_layouts_are_told_how_to_become_messages(tmp_path):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    path = write_lines(tmp_path / "share.jsonl", [{"messages": turns}])
    assert "rename them to 'role' and 'content'" in problems(Data(path=str(path)))[1]
    path = write_lines(tmp_path / "list.jsonl", [{"prompt": CHAT[:2], "response": "b"}])
    assert "into one list of messages" in problems(Data(path=str(path)))[1]


def test_typed_columns_with_nothing_in_them(tmp_path):
    rows = [{"prompt": "a", "response": "b"}, {"prompt": "a", "response": None}]
    assert problems(Data(path=save("parquet", tmp_path, rows))) == {2: "'response' is missing or not text"}


# --- tokens --------------------------------------------------------------------------------------------


def test_tokens_follow_the_template(tokenizer):
    encoded = Encoder(tokenizer, Data(path="x"))(CHAT)
    assert encoded.prompt_text == tokenizer.apply_chat_template(
        CHAT[:-1], add_generation_prompt=True, tokenize=False
    )
    assert tokenizer.decode(encoded.prompt_tokens) == encoded.prompt_text
    assert tokenizer.decode(encoded.response_tokens) == "It is 2.<|im_end|>"
    assert encoded.response_tokens.count(tokenizer.eos_token_id) == 1


def test_prompt_and_response_are_tokenised_apart(tokenizer):
    """The same prompt tokens stand before every response, also where a merge would cross the boundary."""
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    encoder = Encoder(tokenizer, Data(path="x"))
    first, second = (
        encoder([{"role": "user", "content": "Wh"}, {"role": "assistant", "content": text}])
        for text in ("at is", "o")
    )
    assert first.prompt_tokens == second.prompt_tokens == tokenizer.encode("Wh")
    assert first.prompt_tokens + first.response_tokens[:-1] != tokenizer.encode("What is")


def test_behind_a_template_a_response_is_tokenised_as_it_stands_there():
    """Alone, the tokenizers of Llama and Mistral begin it with a space, which a model would never write."""
    tokenizer = train_tokenizer(["It is 2.", "What is 1 plus 1?"], 400, "mistral")
    encoded = Encoder(tokenizer, Data(path="x"))([CHAT[3], CHAT[4]])
    whole = "<|user|>\nWhat is 1 plus 1?</s>\n<|assistant|>\nIt is 2.</s>"
    assert encoded.prompt_tokens + encoded.response_tokens == tokenizer.encode(
        whole, add_special_tokens=False
    )
    assert tokenizer.convert_ids_to_tokens(encoded.response_tokens)[0] == "It"
    assert tokenizer.tokenize("It is 2.")[0] == "▁It"


@pytest.mark.parametrize("ending", ["", "<|im_end|>", "<|im_end|>\n", "<|im_end|>\n<|im_end|>"])
def test_response_ends_with_one_end_token(tokenizer, ending):
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}" + (
        "{% if not add_generation_prompt %}" + ending + "{% endif %}"
    )
    encoded = Encoder(tokenizer, Data(path="x"))(CHAT)
    assert tokenizer.decode(encoded.response_tokens) == "It is 2.<|im_end|>"


def test_options_reach_the_template(tokenizer):
    """Of a model that thinks first, unless told not to: as Qwen3's."""
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{% if loop.last and m.role == 'assistant' %}<think>\n\n</think>\n\n{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n"
        "{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
    )
    thinking = Encoder(tokenizer, Data(path="x"))(CHAT)
    assert tokenizer.decode(thinking.response_tokens) == "<think>\n\n</think>\n\nIt is 2.<|im_end|>"
    options = {"enable_thinking": False}
    plain = Encoder(tokenizer, Data(path="x", chat_template_options=options))(CHAT)
    assert tokenizer.decode(plain.response_tokens) == "It is 2.<|im_end|>"
    assert plain.prompt_text == thinking.prompt_text + "<think>\n\n</think>\n\n"


def test_an_option_that_the_template_does_not_know_is_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"data\.chat_template_options: 'enable_thinkin' does not occur in"):
        Encoder(tokenizer, Data(path="x", chat_template_options={"enable_thinkin": False}))


def test_a_row_whose_response_the_template_changes_is_dropped(tokenizer):
    tokenizer.chat_template = CHATML.replace("m.content }}", "m.content.split('</think>')[-1] }}")
    encoder = Encoder(tokenizer, Data(path="x"))
    assert tokenizer.decode(encoder(CHAT).response_tokens) == "It is 2.<|im_end|>"
    thought = {"role": "assistant", "content": "<think>1 + 1</think>It is 2."}
    with pytest.raises(BadRow, match="the chat template changes the response, or leaves out a part of it"):
        encoder([*CHAT[:-1], thought])


@pytest.mark.parametrize("written", ["It is 2.<end_of_turn>", "It is 2.<eos>"])
def test_an_annotated_response_ends_where_a_written_one_would(turn_tokenizer, written):
    """Otherwise the learner could tell the two kinds apart by their last tokens."""
    ending = "{{ eos_token }}" if "<eos>" in written else "<end_of_turn>\n{{ eos_token }}"
    turn_tokenizer.chat_template = TURNS.replace("<end_of_turn>\n", ending, 1)
    encoded = Encoder(turn_tokenizer, Data(path="x"), ["<end_of_turn>"])(CHAT)
    assert encoded.response_tokens == turn_tokenizer.encode(written)


def test_a_template_that_ends_turns_with_a_token_which_ends_no_written_response_is_refused(
    turn_tokenizer, tmp_path
):
    settings = config(save("jsonl", tmp_path))
    message = r"generation\.stop: .* ends a turn with '<end_of_turn>', .* with '<eos>' alone\. Add '<end_of"
    with pytest.raises(ConfigError, match=message):
        prepare(settings, turn_tokenizer, tmp_path / "run")
    stop = settings.generation.model_copy(update={"stop": ["<end_of_turn>"]})
    prepared = prepare(settings.model_copy(update={"generation": stop}), turn_tokenizer, tmp_path / "run")
    ends = {tokens[-1] for tokens in prepared.train["response_tokens"]}
    assert ends == set(turn_tokenizer.encode("<end_of_turn>"))


def test_stop_texts_that_the_tokenizer_does_not_have_are_refused(tokenizer):
    with pytest.raises(ConfigError, match=r"generation\.stop: '<end_of_turn>' is \d+ tokens"):
        Encoder(tokenizer, Data(path="x"), ["<end_of_turn>"])


def test_without_template(plain_tokenizer):
    encoder = Encoder(plain_tokenizer, Data(path="x", chat_template=False))
    encoded = encoder(CHAT[1:3])
    assert plain_tokenizer.decode(encoded.prompt_tokens) == "<bos>Hello"
    assert plain_tokenizer.decode(encoded.response_tokens) == "Hi.<|im_end|>"
    with pytest.raises(BadRow, match="several turns"):
        encoder(CHAT)


def test_unfit_tokenizers(tokenizer, plain_tokenizer):
    with pytest.raises(ModelError, match=r"Set data.chat_template=false"):
        Encoder(plain_tokenizer, Data(path="x"))
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end token"):
        Encoder(tokenizer, Data(path="x"))


def test_template_that_rewrites_the_prompt(tokenizer):
    tokenizer.chat_template = CHATML.replace("<|im_start|>assistant\n", "<|im_start|>assistant\n<think>")
    with pytest.raises(ModelError, match=r"ends with '.*<think>'.*data.chat_template=false"):
        Encoder(tokenizer, Data(path="x"))(CHAT)


def test_template_that_rewrites_the_prompt_of_some_rows(tokenizer):
    tokenizer.chat_template = "{% if '<think>' in messages[-1].content %}Think. {% endif %}" + CHATML
    encoder = Encoder(tokenizer, Data(path="x"))
    encoder(CHAT)
    with pytest.raises(BadRow, match="the chat template writes another prompt for it alone than with its"):
        encoder([*CHAT[:-1], {"role": "assistant", "content": "<think>1 + 1</think>It is 2."}])


def test_template_that_refuses_a_row(tokenizer):
    tokenizer.chat_template = "{{ raise_exception('no system turns') }}"
    with pytest.raises(BadRow, match="the chat template refuses it: no system turns"):
        Encoder(tokenizer, Data(path="x"))(CHAT)


def test_over_long_rows(tokenizer):
    encoded = Encoder(tokenizer, Data(path="x"))(CHAT)
    prompt, response = len(encoded.prompt_tokens), len(encoded.response_tokens)
    Encoder(tokenizer, Data(path="x", max_prompt_tokens=prompt, max_response_tokens=response))(CHAT)
    with pytest.raises(BadRow, match=f"prompt is longer than data.max_prompt_tokens={prompt - 1}"):
        Encoder(tokenizer, Data(path="x", max_prompt_tokens=prompt - 1))(CHAT)
    with pytest.raises(BadRow, match=f"response is longer than data.max_response_tokens={response - 1}"):
        Encoder(tokenizer, Data(path="x", max_response_tokens=response - 1))(CHAT)


# --- prepare -------------------------------------------------------------------------------------------


def test_prepared_splits(tmp_path, tokenizer):
    settings = config(save("jsonl", tmp_path))
    prepared = prepare(settings, tokenizer, tmp_path / "run")
    assert prepared.train["prompt_id"][:] == list(range(16))
    assert prepared.holdout["prompt_id"][:] == list(range(4))
    assert set(prepared.train.column_names) == {"prompt_id", "prompt_tokens", "response_tokens"}
    row = prepared.holdout[0]
    assert tokenizer.decode(row["prompt_tokens"]) == row["prompt_text"]
    assert tokenizer.decode(row["response_tokens"]) == row["response_text"] + "<|im_end|>"
    assert demonstration(row).response_tokens == row["response_tokens"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["holdout", "report.json", "train"]
    assert load_prepared(tmp_path / "run").report == prepared.report
    assert load_split(tmp_path / "run", "train")[:] == prepared.train[:]
    assert prepared.train.cache_files  # memory-mapped


def test_holdout_is_disjoint_and_drawn_by_seed(tmp_path, tokenizer):
    path = save("jsonl", tmp_path)

    def responses(seed, folder):
        prepared = prepare(config(path, seed=seed), tokenizer, tmp_path / folder)
        return [
            [tuple(row) for row in part["response_tokens"]] for part in (prepared.train, prepared.holdout)
        ]

    train, holdout = responses(1, "first")
    assert len(set(train) | set(holdout)) == 20
    assert responses(1, "again") == [train, holdout]
    assert responses(2, "other")[1] != holdout


def test_subsets_lie_within_each_other(tmp_path, tokenizer):
    rows = [{"prompt": f"What is {i}?", "response": f"It is {i}."} for i in range(100)]
    rows[7]["response"] = ""
    path = save("jsonl", tmp_path, rows)

    def drawn(subset, seed=0):
        folder = tmp_path / f"{subset}-{seed}"
        prepared = prepare(config(path, seed, subset=subset), tokenizer, folder)
        return [
            tokenizer.batch_decode(part["response_tokens"][:]) for part in (prepared.train, prepared.holdout)
        ]

    (small, *_), (middle, *_), (large, holdout), (all_, same) = map(drawn, (14, 26, 50, None))
    assert list(map(len, (small, middle, large, all_))) == [14, 26, 50, 95]
    assert set(small) < set(middle) < set(large) < set(all_)
    assert holdout == same
    assert large == sorted(large, key=all_.index)  # the order of the source
    assert set(drawn(50, seed=1)[0]) != set(large)
    with pytest.raises(DataError, match=r"data.subset=96: only 95 of the 99 rows .* beside data.holdout=4"):
        drawn(96)


def test_no_holdout(tmp_path, tokenizer):
    prepared = prepare(config(save("jsonl", tmp_path), holdout=0), tokenizer, tmp_path / "run")
    assert (len(prepared.train), len(prepared.holdout)) == (20, 0)


def test_holdout_larger_than_the_data(tmp_path, tokenizer):
    with pytest.raises(DataError, match=r"data.holdout=20: .* only 20 rows"):
        prepare(config(save("jsonl", tmp_path), holdout=20), tokenizer, tmp_path / "run")


def test_bad_rows_are_counted(tmp_path, tokenizer):
    rows = [*ROWS, "{", "", {"prompt": "a", "response": ""}, {"prompt": "long " * 99, "response": "b"}, "{"]
    path = write_lines(tmp_path / "data.jsonl", rows)
    prepared = prepare(config(path, max_bad_fraction=0.2, max_prompt_tokens=64), tokenizer, tmp_path / "run")
    report = prepared.report
    assert report.dropped == {
        "is not valid JSON": Dropped(2, [21, 25]),
        "empty response": Dropped(1, [23]),
        "prompt is longer than data.max_prompt_tokens=64": Dropped(1, [24]),
    }
    assert (report.rows, report.train, report.holdout) == (24, 16, 4)
    lengths = [len(row) for part in (prepared.train, prepared.holdout) for row in part["prompt_tokens"]]
    assert report.prompt_tokens.max == max(lengths)
    assert report.prompt_tokens.mean == pytest.approx(sum(lengths) / 20)
    assert json.loads(json.dumps(report.to_dict()))["dropped"]["empty response"] == {"rows": 1, "first": [23]}
    assert "24 rows: 16 to train on, 4 held out." in report.summary()
    assert "Dropped, is not valid JSON: 2 (row 21, 25)" in report.summary()


def test_too_many_bad_rows(tmp_path, tokenizer):
    path = write_lines(tmp_path / "data.jsonl", [*ROWS, *[{"prompt": "a", "response": ""}] * 7])
    with pytest.raises(DataError, match=r"data.max_bad_fraction=0.05: 7 of the 27 rows") as error:
        prepare(config(path), tokenizer, tmp_path / "run")
    assert "empty response: 7 (row 21, 22, 23, 24, 25, …)" in str(error.value)


def test_rows_from_a_table_made_in_memory(tmp_path, tokenizer):
    settings = config("made")
    prepared = prepare_data(
        Rows(Dataset.from_list(ROWS), settings.data), tokenizer, settings, tmp_path / "run"
    )
    assert prepared.report.train == 16


@pytest.mark.skipif(not GSM8K.exists(), reason="GSM8K is not here")
def test_gsm8k(tmp_path, tokenizer):
    settings = config(GSM8K, prompt_column="question", response_column="answer", limit=300)
    report = prepare(settings, tokenizer, tmp_path / "run").report
    assert (report.rows, report.dropped) == (300, {})
