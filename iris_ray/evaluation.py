"""Scores of answers to held-out prompts."""

import re
from collections.abc import Callable, Sequence

from iris_ray.errors import ConfigError
from iris_ray.registry import Registry

Scorer = Callable[[str, str, str], float]
"""From a prompt, an answer and the annotated response, as texts, to a score of the answer."""

SCORERS: Registry[Scorer] = Registry("evaluation.scorer", "Registered by run.plugins")
register_scorer = SCORERS.register


def check_pattern(pattern: str | None) -> None:
    """Raise `ConfigError` unless `evaluation.answer_pattern` is None or an expression with one group."""
    if pattern is None:
        return
    try:
        groups = re.compile(pattern).groups
    except re.error as error:
        raise ConfigError(
            f"evaluation.answer_pattern: {pattern!r} is not a regular expression: {error}."
        ) from error
    if groups != 1:
        raise ConfigError(
            f"evaluation.answer_pattern: {pattern!r} has {groups} groups. Put exactly one around the answer, "
            "for instance '#### (.+)'; write groups that only hold together as (?:…)."
        )


def exact_match(answers: Sequence[str], expected: Sequence[str], pattern: str | None) -> float:
    """Share of answers, 0 to 1, that equal the expected text; white space at the ends does not count.

    With a `pattern` (see `check_pattern`) what its group finds last is compared instead, and a text in
    which it finds nothing equals nothing. No answers at all score 0.
    """
    pairs = zip(answers, expected, strict=True)
    matches = [_found(answer, pattern) == _found(wanted, pattern) is not None for answer, wanted in pairs]
    return sum(matches) / max(1, len(matches))


def _found(text: str, pattern: str | None) -> str | None:
    if pattern is None:
        return text.strip()
    found = re.findall(pattern, text)
    return found[-1].strip() if found else None


def share(value: float | None) -> str:
    """A score as people read it."""
    return "–" if value is None else f"{value:.1%}"
