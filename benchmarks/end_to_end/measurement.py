"""All ways in turns, and what comes of it."""

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.end_to_end import ours, peer
from benchmarks.end_to_end.ours import Row
from benchmarks.end_to_end.scores import score
from benchmarks.end_to_end.settings import OURS, PEERS, Settings, Way, make_start


def measure(
    settings: Settings, ways: Sequence[Way], dtypes: Sequence[str], repeats: int, say: Callable[[str], None]
) -> list[Row]:
    """A row for each way and dtype: medians over `repeats`, with the least and greatest value.

    A repeat plays all ways once, so that a machine that grows slower slows all of them.
    """
    taken: dict[tuple[Way, str], list[Row]] = {}
    with TemporaryDirectory() as folder:
        say("making the start model")
        start = make_start(settings, Path(folder))
        before = score(start.model, start.holdout, settings.max_response_tokens)
        for repeat in range(repeats):
            for dtype in dtypes:
                for way in ways:
                    say(f"{way} in {dtype}, {repeat + 1} of {repeats}")
                    play = peer.play if way in PEERS else ours.play
                    row, models = play(settings, way, dtype, start, f"{way}-{dtype}-{repeat}")
                    scores = [score(m, start.holdout, settings.max_response_tokens) for m in models]
                    row["pairs_per_s"] = row["pairs"] / row["seconds"]
                    row["exact_match"] = [before, *scores]
                    taken.setdefault((way, dtype), []).append(row)
    return [_row(way, dtype, rows) for (way, dtype), rows in taken.items()]


def _row(way: Way, dtype: str, rows: list[Row]) -> Row:
    row: Row = {"way": way, "dtype": dtype, "pairs": rows[0]["pairs"]}
    for name in rows[0]:
        values = [each[name] for each in rows]
        if isinstance(values[0], list):
            row[name] = [median(column) for column in zip(*values, strict=True)]
        elif name != "pairs":
            row |= {name: median(values), f"{name}_min": min(values), f"{name}_max": max(values)}
    return row


def ratios(rows: Sequence[Row]) -> dict[str, float]:
    """Pairs/s of each way of ours over each other way, by dtype; and over the times of its parts.

    Where writing alone takes G and training alone T, overlap makes max(G, T) of G + T at best. Of two cores
    it has one for each part. With `no_overlap` a part has its core for itself, as all other processes of the
    service have the second one: `iteration_of_bound` is over that. With `one_core` they share it, so that
    their work counts in both parts: `iteration_of_one_core_parts` is over that, and may exceed 1.
    """
    known = {(row["way"], row["dtype"]): row for row in rows}
    found = {}
    for (way, dtype), row in known.items():
        if way not in OURS:
            continue
        for other in PEERS:
            if peer := known.get((other, dtype)):
                found[f"{way}_vs_{other}_{dtype}"] = row["pairs_per_s"] / peer["pairs_per_s"]
    for bound, source in (("bound", "no_overlap"), ("one_core_parts", "one_core")):
        for (way, dtype), row in known.items():
            if way == "iteration" and (alone := known.get((source, dtype))):
                longer = max(alone["writing_s"], alone["training_s"])
                found[f"iteration_of_{bound}_{dtype}"] = longer / row["seconds"]
    return found


def seconds_to(row: Row, wanted: float) -> float | None:
    """Until a model of that exact match was made; None if none was."""
    ends = [0.0, *row["iteration_ends_s"]]
    return next((end for end, value in zip(ends, row["exact_match"], strict=True) if value >= wanted), None)
