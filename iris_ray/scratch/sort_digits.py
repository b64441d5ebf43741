"""A made task with checkable answers: sort a row of digits."""

import random

from iris_ray.config import SortDigits
from iris_ray.errors import DataError


def make_rows(spec: SortDigits, holdout: int, seed: int) -> list[dict[str, str]]:
    """`spec.examples + holdout` distinct rows with `prompt` ("sort 529") and `response` ("259").

    The number of digits is drawn evenly, so short rows are not drowned by the many long ones. Raises
    `DataError` if the task has fewer distinct rows than that.
    """
    wanted = spec.examples + holdout
    possible = sum(10**length for length in range(spec.min_digits, spec.max_digits + 1))
    if wanted > possible:
        raise DataError(
            f"data.sort_digits.examples ({spec.examples}) and data.holdout ({holdout}) ask for {wanted} "
            f"distinct rows, but {spec.min_digits} to {spec.max_digits} digits give only {possible}. "
            "Raise data.sort_digits.max_digits or ask for fewer."
        )
    rng = random.Random(seed)
    rows: dict[str, str] = {}
    while len(rows) < wanted:
        digits = rng.choices("0123456789", k=rng.randint(spec.min_digits, spec.max_digits))
        rows["sort " + "".join(digits)] = "".join(sorted(digits))
    return [{"prompt": prompt, "response": response} for prompt, response in rows.items()]
