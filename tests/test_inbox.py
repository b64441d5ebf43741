"""Demonstrations that come while a run goes on: what an iteration takes in stays what it took in."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from conftest import run_config

from actors.sample_buffer import SampleBuffer
from iris_ray.config import RunConfig
from iris_ray.data.inbox import Inbox
from iris_ray.data.splits import load_train
from iris_ray.errors import ConfigError
from iris_ray.game import Round
from iris_ray.preparation import Prepared, check_names, prepare
from iris_ray.run_folder import RunFolder

FIRST = 30
RECIPE: dict[str, Any] = {
    "model": {"dtype": "float32", "scratch": {"vocab_size": 300}},
    "data": {
        "sort_digits": {"examples": FIRST, "min_digits": 2, "max_digits": 4},
        "holdout": 4,
        "max_prompt_tokens": 64,
    },
    "learner": {"batch_size": 8},
}


class Begun:
    """A run whose data are prepared."""

    def __init__(self, root: Path):
        data = RECIPE["data"] | {"inbox": root / "inbox"}
        run = {"name": "grows", "folder": str(root)}
        self.config = RunConfig.from_dict(RECIPE | {"data": data, "run": run})
        self.folder = RunFolder.create(self.config)
        self.prepared: Prepared = prepare(self.config, self.folder)
        self.inbox = self.opened()

    def opened(self) -> Inbox:
        """The inbox as a process sees it that has just started."""
        return Inbox(self.config, self.folder, self.prepared.tokenizer)

    def put(self, name: str, *rows: str | dict[str, Any]) -> None:
        lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
        (self.inbox.path / name).write_text("\n".join(lines) + "\n")

    def prompts(self, iteration: int) -> list[str]:
        rows = load_train(self.folder.data, iteration)
        assert list(rows["prompt_id"]) == list(range(len(rows)))
        return self.prepared.tokenizer.batch_decode(list(rows["prompt_tokens"]))


@pytest.fixture
def begun(tmp_path: Path) -> Begun:
    return Begun(tmp_path)


def pair(digits: str) -> dict[str, str]:
    return {"prompt": digits, "response": " ".join(sorted(digits.split()))}


def test_each_iteration_begins_with_what_is_there(begun: Begun) -> None:
    assert begun.inbox.take_in(1) is None
    begun.put("a.jsonl", pair("3 1"), pair("2 1"))
    added = begun.inbox.take_in(2)
    assert added
    assert (added.files, added.rows) == (["a.jsonl"], 2)
    begun.put("b.jsonl", pair("9 8"))
    begun.put(".half.jsonl", pair("9 9"))
    added = begun.inbox.take_in(4)
    assert added
    assert added.files == ["b.jsonl"]
    first = begun.prompts(1)
    assert len(first) == FIRST
    assert len(begun.prompts(3)) == FIRST + 2
    assert begun.prompts(3)[:FIRST] == first
    assert "9 8" in begun.prompts(4)[-1]
    assert begun.inbox.take_in(5) is None


def test_an_iteration_that_is_played_again_takes_in_the_same(begun: Begun) -> None:
    begun.put("a.jsonl", pair("3 1"))
    before = begun.inbox.take_in(2)
    begun.put("b.jsonl", pair("9 8"))
    assert begun.opened().take_in(2) == before
    assert len(begun.prompts(2)) == FIRST + 1
    later = begun.opened().take_in(3)
    assert later
    assert later.files == ["b.jsonl"]


def test_one_that_stopped_half_way_begins_anew(begun: Begun) -> None:
    left = begun.folder.data / "added" / ".iteration-002"
    left.mkdir(parents=True)
    (left / "rows").write_text("half")
    begun.put("a.jsonl", pair("3 1"))
    added = begun.inbox.take_in(2)
    assert added
    assert added.rows == 1
    assert len(begun.prompts(2)) == FIRST + 1


def test_bad_rows_are_counted_and_bad_files_refused(begun: Begun) -> None:
    begun.put("many.jsonl", *[pair(f"{i} {j}") for i in range(5) for j in range(5)], "no JSON")
    begun.put("bad.jsonl", pair("1 2"), "no JSON")
    begun.put("columns.jsonl", {"question": "1 2", "answer": "1 2"})
    begun.put("empty.jsonl")
    (begun.inbox.path / "empty.jsonl").write_text("")
    (begun.inbox.path / "notes.txt").write_text("not looked at")
    added = begun.inbox.take_in(1)
    assert added
    assert (added.rows, added.dropped) == (25, {"is not valid JSON": 1})
    assert added.refused.keys() == {"bad.jsonl", "columns.jsonl", "empty.jsonl"}
    assert "data.max_bad_fraction" in added.refused["bad.jsonl"]
    assert begun.inbox.take_in(2) is None  # a file is looked at once


def test_nobody_waits_for_a_round_that_the_run_went_back_from(begun: Begun) -> None:
    async def play() -> None:
        buffer = SampleBuffer.__ray_metadata__.modified_class(begun.config)
        await buffer.open_round(Round(1, 0, 1.0, 0.0, ""))
        waiting = [asyncio.ensure_future(wait) for wait in (buffer.share(0, 0, 1), buffer.all_written())]
        await asyncio.sleep(0)
        await buffer.restore(None)
        for each in waiting:
            with pytest.raises(RuntimeError, match="the run went back to a checkpoint"):
                await asyncio.wait_for(each, 60)

    asyncio.run(play())


def test_the_buffer_goes_back_to_the_round_that_it_had(begun: Begun) -> None:
    """In the middle of a round; meanwhile more has come, and a later round was opened."""
    begun.put("a.jsonl", *[pair(f"{i} 1") for i in range(3)])
    begun.inbox.take_in(2)
    buffer_class = SampleBuffer.__ray_metadata__.modified_class

    async def play() -> None:
        buffer = buffer_class(begun.config)
        await buffer.open_round(Round(2, 1, 1.0, 0.0, ""))
        lease = await buffer.lease("generator-0", FIRST)
        asked = [task.demonstration.prompt_id for task in lease.tasks()]
        state, _, _ = await buffer.state()
        begun.put("b.jsonl", pair("9 8"))
        begun.opened().take_in(3)
        await buffer.open_round(Round(3, 2, 1.0, 0.0, ""))
        assert buffer.current.ledger.size == FIRST + 4
        again = buffer_class(begun.config)
        await again.restore(state)
        await again.restored()
        assert again.current.ledger.size == FIRST + 3
        lease = await again.lease("generator-0", FIRST)
        assert [task.demonstration.prompt_id for task in lease.tasks()] == asked

    asyncio.run(play())


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    tspin = run_config(objective={"name": "tspin"}, data={"path": "b", "inbox": tmp_path})
    with pytest.raises(ConfigError, match=r"data\.inbox: does not fit objective\.name=tspin"):
        check_names(tspin)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="is a file"):
        check_names(run_config(data={"path": "b", "inbox": tmp_path / "file"}))
