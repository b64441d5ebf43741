"""Demonstrations that come over HTTP, for the next iteration."""

import json
import os
import time
from typing import Literal

from pydantic import BaseModel, Field, model_validator

from iris_ray.config import Data
from iris_ray.errors import ConfigError
from iris_ray.gateway.requests import Strict, Text


class Turn(Strict):
    role: Literal["system", "user", "assistant"]
    content: Text


class Conversation(Strict):
    """The last turn is the annotated response, those before it the prompt."""

    messages: list[Turn] = Field(min_length=2)

    @model_validator(mode="after")
    def _ends_with_the_response(self) -> "Conversation":
        if self.messages[-1].role != "assistant":
            raise ValueError("the last message must be the assistant's: the annotated response")
        return self


class Demonstrations(Strict):
    demonstrations: list[Conversation] = Field(min_length=1)


class Taken(BaseModel):
    file: str
    demonstrations: int


def put_in(given: Demonstrations, data: Data) -> Taken:
    """Write a file into the inbox; it is there as a whole or not at all.

    Raises `ConfigError` if the run has none.
    """
    if data.inbox is None:
        raise ConfigError("data.inbox: is not set, so this run takes in no demonstrations.")
    name = f"gateway-{time.time_ns()}.jsonl"
    part = data.inbox / f".{name}"
    with part.open("w") as file:
        for each in given.demonstrations:
            turns = [turn.model_dump() for turn in each.messages]
            file.write(json.dumps({data.messages_column: turns}) + "\n")
        file.flush()
        os.fsync(file.fileno())
    part.rename(data.inbox / name)
    return Taken(file=name, demonstrations=len(given.demonstrations))
