"""What each small chart of a page shows."""

from dataclasses import dataclass

import numpy as np

from iris_ray.report.history import History
from iris_ray.report.svg import REAL, SYNTHETIC, THIRD


@dataclass(frozen=True)
class Line:
    """A column of the steps; `spread` names the column of its standard deviation."""

    column: str
    label: str = ""
    colour: str = REAL
    spread: str = ""


@dataclass(frozen=True)
class Panel:
    title: str
    unit: str
    lines: tuple[Line, ...]
    note: str = ""


LIKELIHOOD = Panel(
    "Held-out NLL", "nats per token", (Line("held_out_nll"),), "of annotated responses to held-out prompts"
)
MARGIN = Panel(
    "Held-out margin",
    "nats per response",
    (Line("held_out_margin"),),
    "r(y) − r(y') on held-out prompts, against the model before",
)
DIVERSITY = Panel(
    "Diversity",
    "0 to 1",
    (Line("distinct_2", "distinct-2", REAL), Line("self_bleu", "self-BLEU", SYNTHETIC)),
    "of greedy answers to held-out prompts; where they become all alike, self-BLEU rises",
)
SCORE = Panel("Score", "evaluation.scorer", (Line("score"),), "mean over held-out prompts")
HELD_OUT = (SCORE, LIKELIHOOD, MARGIN, DIVERSITY)

LOSS = Panel("Loss", "the objective's own", (Line("loss"),))
ORDER = Panel("Order α", "", (Line("alpha"),))
REWARDS = Panel(
    "Rewards",
    "nats per response",
    (
        Line("reward_real", "annotated", REAL, "reward_real_sd"),
        Line("reward_synthetic", "synthetic", SYNTHETIC, "reward_synthetic_sd"),
    ),
    "log π/p against the opponent; band: one standard deviation over the batch",
)
SAMPLE_SIZES = Panel(
    "Effective sample size",
    "responses",
    (
        Line("pairs", "batch", THIRD),
        Line("ess_real", "annotated", REAL),
        Line("ess_synthetic", "synthetic", SYNTHETIC),
    ),
    "how many responses carry the gradient of a step",
)
DISTANCE = Panel(
    "|r| per token",
    "nats",
    (Line("abs_reward_mean", "mean", REAL), Line("abs_reward_max", "largest", SYNTHETIC)),
    "on the first step against an opponent: mismatch of the two scorings",
)
GRADIENT = Panel("Gradient norm", "before clipping", (Line("grad_norm"),))
LEARNING_RATE = Panel("Learning rate", "", (Line("learning_rate"),))
LENGTH = Panel("Response length", "tokens", (Line("response_tokens"),), "annotated and synthetic together")
STALENESS = Panel(
    "Staleness",
    "versions",
    (Line("staleness_mean", "mean", REAL), Line("staleness_max", "largest", SYNTHETIC)),
    "how far the opponent of a trained pair lies behind the newest",
)
COUNTS = Panel(
    "Cut and identical",
    "pairs of a step",
    (
        Line("truncated", "cut", SYNTHETIC),
        Line("identical", "word for word the annotated one", REAL),
    ),
)


def gap_panel(history: History) -> Panel:
    per = {"token": "response token", "sequence": "response"}[history.config.alpha.gap_per]
    return Panel("Gap D̂", f"nats per {per}", (Line("gap"),))


def step_panels(history: History, has_order: bool) -> list[Panel]:
    """The panels that say something about this run."""
    panels = [LOSS, *([ORDER] if has_order else []), gap_panel(history), REWARDS, SAMPLE_SIZES]
    panels += [DISTANCE, GRADIENT, LEARNING_RATE, LENGTH, COUNTS]
    steps = history.steps
    if np.nanmax(steps["staleness_max"], initial=0) > 0 or history.config.schedule.refresh != "iteration":
        panels.append(STALENESS)
    return [panel for panel in panels if any(np.isfinite(steps[line.column]).any() for line in panel.lines)]
