"""Scores as tables on the console."""

from collections.abc import Sequence
from statistics import mean

from rich.table import Table

from iris_ray.harness.evaluate import Score
from iris_ray.harness.suites import PUBLISHED


def scores_table(scores: Sequence[Score], title: str) -> Table:
    table = _table(title, "task", "shots", "documents", "metric", "score", "standard error")
    for score in scores:
        names = [score.metric] if score.task.metric else [n for n in score.metrics if "_stderr" not in n]
        for name in names:
            error = score.stderr_of(name)
            table.add_row(
                score.task.title,
                str(score.shots),
                str(score.documents),
                name.removesuffix(",none"),
                f"{score.metrics[name]:.4f}",
                "–" if error is None else f"{error:.4f}",
            )
    return table


def average(scores: Sequence[Score]) -> float:
    """Mean over tasks, each counted once, in percent: as the paper reports it."""
    return 100 * mean(score.value for score in scores)


def published_table(name: str, scores: Sequence[Score]) -> Table:
    """The average of all ten beside what was published, highest first."""
    table = _table("Average of ten, in percent", "model", "average")
    rows = [(average(scores), name, "bold"), *((value, of, "") for of, value in PUBLISHED.items())]
    for value, of, style in sorted(rows, reverse=True):
        table.add_row(of, f"{value:.2f}", style=style)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table
