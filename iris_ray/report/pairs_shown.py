"""A few prompts with what was written to them at the beginning and at the end of a run."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from iris_ray.run_folder import RunFolder, iteration_of

SHOWN = 8
# By whether the written response is the annotated one, at first and at last.
KINDS = {
    (False, True): "only the last is the annotated response",
    (True, False): "only the first is the annotated response",
    (False, False): "neither is the annotated response",
    (True, True): "both are the annotated response",
}
KINDS_OF_ONE = {(False,): "not the annotated response", (True,): "the annotated response"}


@dataclass(frozen=True)
class Writing:
    """One prompt in the archive: texts and token ids, the annotated response (`real`) and the written."""

    iteration: int
    prompt_id: int
    prompt: str
    real: str
    synthetic: str
    finish_reason: str
    prompt_tokens: list[int]
    real_tokens: list[int]
    synthetic_tokens: list[int]


@dataclass(frozen=True)
class ShownPrompt:
    """What was written to one prompt, in each iteration that is shown; `kind` compares it in words."""

    kind: str
    writings: tuple[Writing, ...]


@dataclass(frozen=True)
class ShownPairs:
    """`counts` is over all prompts that were written to in all the `iterations`, `prompts` some of them."""

    iterations: list[int]
    counts: dict[str, int]
    prompts: list[ShownPrompt]


def archives(folder: RunFolder) -> list[Path]:
    """The iterations' samples, in order; one that was cut off while it was written is left out."""
    return [path for path in folder.archives() if _is_whole(path)]


def shown_pairs(folder: RunFolder, most: int = SHOWN) -> ShownPairs | None:
    """Prompts of the first iteration and the last; of one alone if they share none; `None` without any.

    As many of each kind as there are, in turn; of each kind the first in the order of the data.
    """
    files = archives(folder)
    if not files:
        return None
    shown = [files[0], files[-1]] if len(files) > 1 else files
    common, rows = _common([_column(path, "prompt_id") for path in shown])
    if not len(common):
        shown = shown[-1:]
        common, rows = _common([_column(path, "prompt_id") for path in shown])
    same = [_same(path)[mine] for path, mine in zip(shown, rows, strict=True)]
    kinds = KINDS if len(shown) == 2 else KINDS_OF_ONE
    places = {
        kind: np.flatnonzero(np.all([mine == want for mine, want in zip(same, wanted, strict=True)], axis=0))
        for wanted, kind in kinds.items()
    }
    chosen = in_turn(list(places.values()), most)
    writings = [read_rows(path, mine[chosen]) for path, mine in zip(shown, rows, strict=True)]
    names = [next(kind for kind, mine in places.items() if place in mine) for place in chosen]
    return ShownPairs(
        iterations=[iteration_of(path) for path in shown],
        counts={kind: len(mine) for kind, mine in places.items()},
        prompts=[ShownPrompt(kind, tuple(parts)) for kind, *parts in zip(names, *writings, strict=True)],
    )


def _common(ids: list[np.ndarray]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Prompts that all archives have, in order, and the first row of each in each archive."""
    common = reduce(np.intersect1d, ids, ids[0])
    rows = []
    for mine in ids:
        order = np.argsort(mine, kind="stable")  # several responses to a prompt: the first that was kept
        rows.append(order[np.searchsorted(mine, common, sorter=order)])
    return common, rows


def in_turn(groups: Sequence[np.ndarray], most: int) -> list[int]:
    """The first of each group, the second of each, and so on until there are `most`; sorted by group."""
    ranked = [
        (rank, group) for group, members in enumerate(groups) for rank in range(min(most, len(members)))
    ]
    taken = sorted(sorted(ranked)[:most], key=lambda place: (place[1], place[0]))
    return [int(groups[group][rank]) for rank, group in taken]


def read_rows(path: Path, rows: Sequence[int] | np.ndarray) -> list[Writing]:
    """Some rows of an archive."""
    names = list(Writing.__dataclass_fields__)
    table = pq.read_table(path, columns=names).take(pa.array(rows, pa.int64()))
    values: list[dict[str, Any]] = table.to_pylist()
    return [Writing(**row) for row in values]


def _column(path: Path, name: str) -> np.ndarray:
    return pq.read_table(path, columns=[name])[name].to_numpy()


def _same(path: Path) -> np.ndarray:
    table = pq.read_table(path, columns=["real", "synthetic"])
    return pc.equal(table["real"], table["synthetic"]).to_numpy()


def _is_whole(path: Path) -> bool:
    try:
        pq.read_metadata(path)
    except pa.ArrowInvalid:
        return False
    return True
