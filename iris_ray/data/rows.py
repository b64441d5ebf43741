"""Annotated rows as chat messages, whatever columns they came in."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from datasets import Dataset

from iris_ray.config import Data
from iris_ray.data.sources import JSON_LINE, open_dataset
from iris_ray.errors import DataError

BATCH_ROWS = 1000

Message = dict[str, str]
"""One turn of a chat: `role` and `content`."""


class BadRow(ValueError):
    """A row that cannot be used; the message is the reason under which it is counted."""


@dataclass(frozen=True)
class Row:
    """A row and its number in the source, from 1. `messages` is empty where `problem` says what is wrong."""

    number: int
    messages: list[Message]
    problem: str = ""


def read_rows(data: Data) -> "Rows":
    """Open `data.path` and find the columns to read.

    Raises `DataError` if the source cannot be read, is empty or lacks the columns.
    """
    return Rows(open_dataset(data), data)


class Rows:
    """The annotated rows of a memory-mapped table, made into messages batch by batch as they are read.

    The last message is the assistant's: the annotated response. What comes before it is the prompt.
    """

    def __init__(self, dataset: Dataset, data: Data) -> None:
        self._data = data
        self._json_lines = dataset.column_names == [JSON_LINE]
        columns = _json_columns(dataset, data) if self._json_lines else dataset.column_names
        self._has_messages = data.messages_column in columns
        wanted = [data.messages_column] if self._has_messages else [data.prompt_column, data.response_column]
        if not set(wanted) <= set(columns):
            raise _wrong_columns(columns, data)
        self.dataset = dataset if self._json_lines else dataset.select_columns(wanted)

    def __iter__(self) -> Iterator[Row]:
        for start in range(0, len(self.dataset), BATCH_ROWS):
            batch = self.dataset[start : start + BATCH_ROWS]
            yield from self.parse(batch, range(start, start + BATCH_ROWS))

    def parse(self, batch: dict[str, list[Any]], indices: Iterable[int]) -> Iterator[Row]:
        """The rows of a batch of `dataset`, whose rows have these indices. Blank lines are no rows."""
        for index, values in zip(indices, zip(*batch.values(), strict=True), strict=False):
            record = dict(zip(batch, values, strict=True))
            if self._json_lines and not record[JSON_LINE].strip():
                continue
            try:
                yield Row(index + 1, self._messages(record))
            except BadRow as bad:
                yield Row(index + 1, [], str(bad))

    def _messages(self, record: dict[str, Any]) -> list[Message]:
        if self._json_lines:
            record = _parse_json(record[JSON_LINE])
        if self._has_messages:
            messages = _turns(record.get(self._data.messages_column), self._data.messages_column)
            messages = messages[: _end_of_round(messages, self._data.rounds)]
        else:
            messages = [
                {"role": "user", "content": _text(record, self._data.prompt_column)},
                {"role": "assistant", "content": _text(record, self._data.response_column)},
            ]
        _check(messages)
        return messages


def _parse_json(line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise BadRow("is not valid JSON") from error
    if not isinstance(record, dict):
        raise BadRow("is not a JSON object")
    return record


def _text(record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if isinstance(value, list):
        raise BadRow(
            f"{column!r} is a list: put prompt and response into one list of messages, with role and content "
            "each, and name it in data.messages_column"
        )
    if not isinstance(value, str):
        raise BadRow(f"{column!r} is missing or not text")
    return value


def _turns(value: Any, column: str) -> list[Message]:
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        raise BadRow(f"{column!r} is not a list of messages")
    if any({"from", "value"} <= turn.keys() for turn in value):
        raise BadRow(
            f"{column!r} has messages with 'from' and 'value': rename them to 'role' and 'content', and the "
            "roles to 'user' and 'assistant'"
        )
    turns = [{"role": turn.get("role"), "content": turn.get("content")} for turn in value]
    if not all(isinstance(text, str) for turn in turns for text in turn.values()):
        raise BadRow(f"{column!r} has a message whose role or content is missing or not text")
    return turns


def _end_of_round(messages: list[Message], rounds: int | None) -> int | None:
    """How many messages there are up to the end of round `rounds`; `None` if it is not reached."""
    ends = [index for index, message in enumerate(messages, 1) if message["role"] == "assistant"]
    return ends[rounds - 1] if rounds and rounds <= len(ends) else None


def _check(messages: list[Message]) -> None:
    if not messages or messages[-1]["role"] != "assistant":
        raise BadRow("does not end with an assistant turn")
    if not messages[-1]["content"].strip():
        raise BadRow("empty response")
    if len(messages) < 2 or not messages[-2]["content"].strip():
        raise BadRow("empty prompt")
    try:
        "".join(message["content"] for message in messages).encode()
    except UnicodeEncodeError as error:
        raise BadRow("is not valid Unicode") from error


def _json_columns(dataset: Dataset, data: Data) -> list[str]:
    """The keys of the first lines. JSON Lines have no header, and the first line may be a bad one."""
    columns: dict[str, None] = {}
    for line in dataset[:100][JSON_LINE]:
        try:
            columns.update(dict.fromkeys(_parse_json(line)))
        except BadRow:
            continue
    if not columns:
        raise DataError(
            f"data.path: {data.path} has no JSON object in its first 100 lines. Write one object a line."
        )
    return list(columns)


def _wrong_columns(columns: list[str], data: Data) -> DataError:
    settings = {"prompt_column": data.prompt_column, "response_column": data.response_column}
    missing = [f"data.{key}={value}" for key, value in settings.items() if value not in columns]
    example = (
        f", for instance data.prompt_column={columns[0]} data.response_column={columns[1]}"
        if len(columns) == 2
        else f", or data.messages_column (now {data.messages_column}) to a column of chat messages"
    )
    return DataError(
        f"{' and '.join(missing)}: {data.path} has no such column. Its columns are: {', '.join(columns)}. "
        f"Set data.prompt_column and data.response_column to two of these{example}."
    )
