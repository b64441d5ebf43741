"""What came of it, and which bounds are broken."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import numpy as np

from benchmarks.kinds import OTHER
from benchmarks.soak.progress import Incident, Progress
from benchmarks.soak.sampling import FOLDER, LOGS, SHARED, Sample
from benchmarks.soak.settings import Settings
from benchmarks.soak.slopes import Slope, slope

NOT_JUDGED = (OTHER, "idle workers", "compilers")
# Ray itself lets these grow to a bound: what it knows of the last 100,000 tasks; 200 files of dead workers.
BOUNDED_BY_RAY = {("gcs", "memory_mib_per_hour"), ("monitors", "handles_per_hour")}


def by_fault(incidents: Sequence[Incident]) -> list[dict[str, Any]]:
    """Seconds until the run stepped again, and until another generator was ready, by kind of fault.

    Those do not count that were `overtaken`: before a step came, something else sent the run back, or the
    run ended.
    """
    rows = []
    for name in sorted({one.name for one in incidents}):
        here = [one for one in incidents if one.name == name]
        row: dict[str, Any] = {"fault": name, "times": len(here)}
        for what in ("step", "generator"):
            taken = [seconds for one in here if (seconds := _until(one, what, incidents)) is not None]
            row |= {f"{what}_median_s": median(taken) if taken else None}
            row |= {f"{what}_max_s": max(taken, default=None)}
            if what == "step":
                row["overtaken"] = len(here) - len(taken)
        rows.append(row)
    return rows


def _until(one: Incident, what: str, incidents: Sequence[Incident]) -> float | None:
    over = one.stepped if what == "step" else one.replaced
    if over is None or any(other.goes_back and one.time < other.time < over for other in incidents):
        return None
    return over - one.time


def by_kind(samples: Sequence[Sample]) -> list[dict[str, Any]]:
    """Of each kind: how many at a time, most memory of all together, and slopes of one process."""
    rows = []
    lives: dict[str, dict[tuple[int, float], list[Sample]]] = defaultdict(lambda: defaultdict(list))
    for sample in samples:
        lives[sample.kind][sample.pid, sample.started].append(sample)
    for kind, members in lives.items():
        if kind in (SHARED, FOLDER, LOGS):
            continue
        together: dict[float, list[Sample]] = defaultdict(list)
        for sample in (one for life in members.values() for one in life):
            together[sample.seconds].append(sample)
        rows.append(
            {
                "kind": kind,
                "lives": len(members),
                "at_a_time": max(map(len, together.values())),
                "peak_mib": max(sum(one.pss_mib for one in at) for at in together.values()),
                "handles": max(one.handles for life in members.values() for one in life),
                "threads": max(one.threads for life in members.values() for one in life),
                "memory_mib_per_hour": _slope(members.values(), "own_mib"),
                "handles_per_hour": _slope(members.values(), "handles"),
            }
        )
    return sorted(rows, key=lambda row: -row["peak_mib"])


def _slope(lives: Iterable[Sequence[Sample]], what: str) -> Slope | None:
    return slope(
        (np.array([one.seconds for one in life]), np.array([getattr(one, what) for one in life], dtype=float))
        for life in lives
    )


def sizes(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """MiB of what is no process: first, most and last."""
    found = {}
    for kind in (SHARED, FOLDER, LOGS):
        if values := [one.pss_mib for one in samples if one.kind == kind]:
            found[kind] = {"first": values[0], "most": max(values), "last": values[-1]}
    return found


def losses(progress: Progress) -> dict[str, Any]:
    """`written_again`: pairs that were written and were gone after going back to a checkpoint. What dead
    generators had under way comes on top: at most `under_way`, which all generators together were writing."""
    return {
        "steps": progress.steps,
        "repeated_steps": progress.repeated_steps,
        "written_again": progress.written_again,
        "under_way": sum(one.leased for one in progress.incidents),
        "deaths": progress.deaths,
    }


def reasons(report: dict[str, Any], settings: Settings) -> list[str]:
    """Why the soak failed; empty if it did not."""
    found = list(report["problems"])
    found += [f"{run['run']}: {wrong}" for run in report["runs"] for wrong in run["wrong"]]
    found += [f"orphan: {each}" for each in report["orphans"]]
    margins = {
        "memory_mib_per_hour": (settings.memory_margin, "MiB"),
        "handles_per_hour": (settings.handles_margin, "file handles"),
    }
    for row in report["kinds"]:
        for name, (margin, unit) in margins.items():
            grown = row[name]
            if row["kind"] in NOT_JUDGED or (row["kind"], name) in BOUNDED_BY_RAY:
                continue
            if grown and Slope(**grown).exceeds(margin):
                found.append(
                    f"{row['kind']}: gains {grown['per_hour']:.0f} ± {grown['error']:.0f} {unit} an hour; "
                    f"{margin:g} are allowed"
                )
    broken = report["http"]["broken"]
    if broken:
        found.append(f"{broken} of {report['http']['requests']} requests were broken")
    return found


def plain(row: dict[str, Any]) -> dict[str, Any]:
    """Slopes as dictionaries, for JSON."""
    return {key: asdict(value) if isinstance(value, Slope) else value for key, value in row.items()}
