"""How figures of benchmarks look."""

from typing import Any

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "iris-ray",  # the same numbers give the same file
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
