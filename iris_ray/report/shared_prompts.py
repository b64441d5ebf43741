"""The same prompts as several runs wrote to them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from iris_ray.report.history import History
from iris_ray.report.pairs_shown import Writing, archives, in_turn, read_rows

SHOWN = 6


@dataclass(frozen=True)
class SharedPrompt:
    """A prompt that all runs wrote to in their last archived iteration, and what each wrote."""

    prompt: str
    real: str
    written: list[Writing]


@dataclass(frozen=True)
class SharedPrompts:
    """`count` prompts in all; `met` says of each run how many of them got the annotated response."""

    count: int
    met: list[int]
    shown: list[SharedPrompt]


def shared_prompts(histories: Sequence[History], most: int = SHOWN) -> SharedPrompts | None:
    """Prompts with the same annotated response that all runs wrote to in their last archived iteration.

    `None` if there are none. Those shown are taken in turn by who wrote the annotated response, of each
    such group the first.
    """
    files = [mine[-1] for history in histories if (mine := archives(history.folder))]
    if len(files) < len(histories):
        return None
    rows: list[dict[tuple[str, str], int]] = []
    for path in files:
        table = pq.read_table(path, columns=["prompt", "real"])
        keys = zip(table["prompt"].to_pylist(), table["real"].to_pylist(), strict=True)
        found: dict[tuple[str, str], int] = {}
        for row, key in enumerate(keys):
            found.setdefault(key, row)  # several responses to a prompt: the first that was kept
        rows.append(found)
    common = [key for key in rows[0] if all(key in mine for mine in rows)]
    if not common:
        return None
    same = np.stack(
        [_same_at(path, [mine[key] for key in common]) for path, mine in zip(files, rows, strict=True)]
    )
    patterns = np.unique(same, axis=1).T
    groups = [np.flatnonzero((pattern == same.T).all(axis=1)) for pattern in patterns]
    chosen = [common[place] for place in in_turn(groups, most)]
    written = [read_rows(path, [mine[key] for key in chosen]) for path, mine in zip(files, rows, strict=True)]
    shown = [
        SharedPrompt(prompt, real, list(responses))
        for (prompt, real), *responses in zip(chosen, *written, strict=True)
    ]
    return SharedPrompts(len(common), same.sum(axis=1).tolist(), shown)


def _same_at(path: Path, rows: Sequence[int]) -> np.ndarray:
    table = pq.read_table(path, columns=["real", "synthetic"]).take(rows)
    return np.array(table["real"].to_pylist()) == np.array(table["synthetic"].to_pylist())
