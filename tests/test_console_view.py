"""What a run says on a terminal that draws no bars."""

import io

import pytest
from rich.console import Console

from iris_ray.console_view import ConsoleView

STATUS = {
    "iteration": 0,
    "evaluated": -1,
    "iterations": [],
    "warnings": [],
    "generators": [],
    "wanted": 2,
    "deaths": [],
}
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


def test_a_warning_is_printed_once_though_its_step_is_taken_again() -> None:
    output = io.StringIO()
    view = ConsoleView(Console(file=output, width=200))
    first, second = (
        {"iteration": 1, "step": step, "kind": "annotated_fall", "message": "look"} for step in (5, 9)
    )
    for warnings in ([], [first], [first, second], [], [first], [first, second]):
        view.update(STATUS | {"learner_starts": [], "warnings": warnings})
    assert output.getvalue().splitlines() == [
        "Warning (iteration 1, step 5) look",
        "Warning (iteration 1, step 9) look",
    ]


def test_generators_that_die_and_new_numbers_of_them_are_told_of_once() -> None:
    output = io.StringIO()
    view = ConsoleView(Console(file=output, width=200))
    death = {"name": "generator-0", "reason": "lost its node"}
    for wanted, deaths in ((2, []), (2, [death]), (2, [death]), (4, [death]), (4, [death])):
        view.update(STATUS | {"learner_starts": [], "wanted": wanted, "deaths": deaths})
    assert output.getvalue().splitlines() == [
        "generator-0 died and is replaced: lost its node",
        "Generators: 2 -> 4",
    ]
