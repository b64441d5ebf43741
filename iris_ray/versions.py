"""Versions of what a result depends on."""

from functools import cache
from importlib.metadata import packages_distributions, version

PACKAGES = ("iris_ray", "ray", "vllm", "deepspeed", "torch", "transformers")


@cache  # reads what is installed, which takes a second
def versions() -> dict[str, str]:
    """Version of each package that is installed; `vllm` may come from a distribution of another name."""
    distributions = packages_distributions()
    return {package: version(distributions[package][0]) for package in PACKAGES if package in distributions}
