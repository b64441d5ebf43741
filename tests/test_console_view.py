"""What a run says on a terminal that draws no bars."""

import io

import pytest
from rich.console import Console

from iris_ray.console_view import ConsoleView

STATUS = {"iteration": 0, "evaluated": -1, "iterations": [], "warnings": [], "generators": []}
BEGIN, LATER = {"iteration": 0, "step": 0}, {"iteration": 1, "step": 4}


@pytest.mark.parametrize(
    ("starts", "lines"),
    [
        ([[], [BEGIN]], []),
        ([[], [LATER]], []),  # a run that was resumed
        ([[BEGIN], [BEGIN, LATER], [BEGIN, LATER]], ["goes on from iteration 1, step 4"]),
        ([[BEGIN], [BEGIN, BEGIN, LATER]], ["begins again", "goes on from iteration 1, step 4"]),
    ],
)
def test_a_learner_that_died_is_told_of_once(starts: list[list[dict]], lines: list[str]) -> None:
    output = io.StringIO()
    view = ConsoleView(Console(file=output))
    for learner_starts in starts:
        view.update(STATUS | {"learner_starts": learner_starts})
    printed = output.getvalue().splitlines()
    assert len(printed) == len(lines)
    for text, line in zip(printed, lines, strict=True):
        assert text.startswith(f"The learner died and {line}")
