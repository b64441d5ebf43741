"""What goes wrong in training, told with its cause.

All thresholds are [choice]: far from what healthy runs show.
"""

from collections import deque
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from iris_ray.config import Alpha
from iris_ray.contracts import StepReport
from iris_ray.game import Round

WINDOW = 10  # steps that a finding is averaged over
FEWEST = 5  # steps before anything is said
LOW_ESS, LOWEST_ESS = 0.1, 1.5  # of the batch; responses
SMALL_BATCH = 4  # pairs, below which a collapse says nothing
LARGE_REWARD = 1.0  # nats per response token
FALLEN_REWARD = -0.1  # nats per response token
OFTEN_CUT, OFTEN_IDENTICAL = 0.5, 0.9  # of the pairs

TRUNCATED = (
    "were cut at data.max_response_tokens, so the learner may tell them apart by their missing end alone. "
    "Raise data.max_response_tokens, or check that the model was taught to end its answers."
)
IDENTICAL = (
    "are the annotated ones, word for word: such pairs all but cancel out, and the others alone teach. Once "
    "the evaluation no longer rises, stop or bring harder prompts."
)


@dataclass(frozen=True)
class Finding:
    """`kind` for tools; `message` says what was seen, why it matters and what to do."""

    kind: str
    message: str


class Diagnostics:
    """Watches one run; says each kind of trouble once an opponent."""

    def __init__(self, order: Alpha | None):
        """`order`: settings of the order, `None` for an objective that has none."""
        self.order = order
        self._iteration = 0
        self._recent: deque[StepReport] = deque(maxlen=WINDOW)
        self._said: set[str] = set()

    def stepped(self, round_: Round, report: StepReport) -> list[Finding]:
        """What is new after an optimiser step of `round_`."""
        if round_.iteration != self._iteration:
            self._iteration = round_.iteration
            self._recent.clear()
            self._said.clear()
        self._recent.append(report)
        findings = self._saturated(round_)
        if len(self._recent) >= FEWEST:
            findings += self._collapsed() + self._exploded()
            findings += self._often("truncated", OFTEN_CUT, TRUNCATED)
            findings += self._often("identical", OFTEN_IDENTICAL, IDENTICAL)
        return self._new(findings)

    def state_dict(self) -> dict[str, Any]:
        """What was seen of the opponent and said of it, in plain JSON types."""
        recent = [asdict(report) for report in self._recent]
        return {"iteration": self._iteration, "recent": recent, "said": sorted(self._said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self._iteration = state["iteration"]
        self._recent = deque((StepReport(**report) for report in state["recent"]), maxlen=WINDOW)
        self._said = set(state["said"])

    def _new(self, findings: list[Finding]) -> list[Finding]:
        new = [finding for finding in findings if finding.kind not in self._said]
        self._said.update(finding.kind for finding in new)
        return new

    def _mean(self, name: str) -> float:
        return fmean(getattr(report, name) for report in self._recent)

    def _saturated(self, round_: Round) -> list[Finding]:
        settings, gap = self.order, round_.gap
        if settings is None or settings.schedule != "gap_feedback":
            return []
        wanted = 1 + settings.c * gap
        if wanted > settings.maximum:
            fewer = " or count the gap with alpha.gap_per=token" if settings.gap_per == "sequence" else ""
            message = (
                f"gap {gap:.3g} asks for α = {wanted:.3g}, above alpha.maximum={settings.maximum:g}: α no "
                f"longer follows it. Lower alpha.c{fewer}."
            )
        elif wanted < min(settings.minimum, 1):
            message = (
                f"gap {gap:.3g} asks for α = {wanted:.3g}, below alpha.minimum={settings.minimum:g}: "
                "synthetic responses gained more on the last opponent than annotated ones did. Lower "
                "learner.learning_rate."
            )
        else:
            return []
        return [Finding("gap_saturates", message)]

    def _collapsed(self) -> list[Finding]:
        pairs, findings = self._mean("pairs"), []
        for side, name in (("real", "annotated"), ("synthetic", "synthetic")):
            ess = self._mean(f"ess_{side}")
            if pairs >= SMALL_BATCH and 0 < ess < max(LOW_ESS * pairs, LOWEST_ESS):
                findings.append(
                    Finding(
                        f"ess_{side}_collapses",
                        f"{ess:.1f} of {pairs:.0f} {name} responses carry the gradient: their log-ratios "
                        f"spread by {self._mean(f'reward_{side}_sd'):.1f} nats, so a few decide each step. "
                        "Lower learner.learning_rate or α, or train fewer epochs on an opponent.",
                    )
                )
        return findings

    def _exploded(self) -> list[Finding]:
        tokens = self._mean("response_tokens")
        real, synthetic = (self._mean(f"reward_{side}") / tokens for side in ("real", "synthetic"))
        findings = []
        if max(abs(real), abs(synthetic)) > LARGE_REWARD:
            findings.append(
                Finding(
                    "rewards_explode",
                    f"log-ratios reached {real:+.2f} (annotated) and {synthetic:+.2f} (synthetic) nats per "
                    "token: the policy has left its opponent far behind, where the loss says little of the "
                    "text it writes. Lower learner.learning_rate or schedule.epochs.",
                )
            )
        if real < FALLEN_REWARD:
            findings.append(
                Finding(
                    "annotated_fall",
                    f"annotated responses became less likely than under the opponent ({real:+.2f} nats per "
                    "token): training pushes both kinds down. Lower learner.learning_rate, or compare with "
                    "objective.name=sft.",
                )
            )
        return findings

    def _often(self, what: str, limit: float, meaning: str) -> list[Finding]:
        share = self._mean(what) / self._mean("pairs")
        if share <= limit:
            return []
        return [Finding(f"mostly_{what}", f"{share:.0%} of the written responses {meaning}")]
