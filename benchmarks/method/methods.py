"""The methods that the study compares: settings of the service, and a share of the annotated data."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Method:
    """`objective` and `alpha` are sections of a recipe; `share` of the annotated pairs is trained on."""

    objective: dict[str, Any] = field(default_factory=dict)
    alpha: dict[str, Any] = field(default_factory=dict)
    share: float = 1.0


def _fixed(alpha: float) -> Method:
    return Method(alpha={"schedule": "fixed", "value": alpha})


def _feedback(gap: str, per: str, c: float, share: float = 1.0) -> Method:
    return Method(alpha={"schedule": "gap_feedback", "gap": gap, "gap_per": per, "c": c}, share=share)


def _other(name: str, share: float = 1.0, **options: Any) -> Method:
    return Method(objective={"name": name, "options": options}, share=share)


# A difference of means per token cannot be counted per response without weighing in the lengths.
ESTIMATORS = (
    ("margin", "token"),
    ("margin", "sequence"),
    ("variational", "token"),
    ("variational", "sequence"),
    ("nll", "token"),
)
GAINS = (0.1, 0.5, 1.0)

METHODS = {
    "SFT": _other("sft"),
    "SPIN λ=0.1": _other("spin", lam=0.1),
    "SPIN λ=1": _other("spin", lam=1.0),
    "SPACE": _other("space"),
    "SPIF": _other("spif"),
    "T-SPIN": _other("tspin"),
    **{f"IRIS α={alpha:g}": _fixed(alpha) for alpha in (0.5, 1, 1.5, 2)},
    "IRIS geometric": Method(alpha={"schedule": "geometric"}),
    **{f"IRIS {gap}/{per} c={c:g}": _feedback(gap, per, c) for gap, per in ESTIMATORS for c in GAINS},
    "SFT 13%": _other("sft", share=0.13),
    "SPACE 13%": _other("space", share=0.13),
    "IRIS 13%": _feedback("margin", "sequence", 0.5, share=0.13),
}

MAIN_METHODS = (
    "SFT",
    "SPIN λ=0.1",
    "SPACE",
    "SPIF",
    "T-SPIN",
    "IRIS α=1",
    "IRIS α=2",
    "IRIS margin/sequence c=0.5",
)
"""One or two of each kind: what is played from early starts as well."""
