"""Memory and file handles by kind of process over time, with what happened as marks."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt

from benchmarks.soak.progress import Incident
from benchmarks.soak.sampling import FOLDER, LOGS, Sample
from benchmarks.style import STYLE

MOST = 9  # kinds with a colour of their own; the others are drawn in grey
MARKS = {"kill": "tab:red", "hang": "tab:orange", "driver": "black", "order": "tab:blue"}

mpl.rcParams.update(STYLE)


def draw(samples: Sequence[Sample], incidents: Sequence[Incident], began: float, path: Path) -> None:
    """Proportional memory of all processes of a kind together above, their file handles below.

    `began`: when the samples' time began, in s since 1970.
    """
    memory: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    handles: dict[str, dict[float, float]] = defaultdict(lambda: defaultdict(float))
    for sample in samples:
        if sample.kind not in (FOLDER, LOGS):
            memory[sample.kind][sample.seconds] += sample.pss_mib
        if sample.pid:
            handles[sample.kind][sample.seconds] += sample.handles
    times = sorted({sample.seconds for sample in samples})
    kinds = sorted(memory, key=lambda kind: -max(memory[kind].values()))
    figure, axes = plt.subplots(2, 1, figsize=(11, 7.5), sharex=True, height_ratios=(3, 2))
    minutes = [time / 60 for time in times]
    for axis, found in zip(axes, (memory, handles), strict=True):
        for index, kind in enumerate(kinds):
            if kind in found:
                values = [found[kind].get(time, float("nan")) for time in times]
                color = f"C{index}" if index < MOST else "0.75"
                axis.plot(minutes, values, color=color, linewidth=1.2, label=kind if index < MOST else None)
        axis.set_ylim(bottom=0)
    for axis in axes:
        for means, color in MARKS.items():
            at = [(one.time - began) / 60 for one in incidents if one.name.startswith(means)]
            low, high = axis.get_ylim()
            label = f"{means} ({len(at)})" if axis is axes[0] else None
            axis.vlines(at, low, high, color=color, linewidth=0.6, alpha=0.45, label=label)
            axis.set_ylim(low, high)
    axes[0].set_ylabel("memory, MiB")
    axes[1].set_ylabel("file handles")
    axes[1].set_xlabel("minutes")
    figure.tight_layout(rect=(0, 0.08, 1, 1))
    handles_shown, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles_shown, labels, loc="lower center", ncols=7, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)
