"""Figures and tables of the study, from its results alone."""

import math
from collections import Counter
from pathlib import Path
from statistics import fmean, stdev

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from benchmarks.method.analysis import Estimate, Study, geometric_mean
from benchmarks.method.cell import ITERATIONS, LEARNING_RATES
from benchmarks.method.methods import METHODS
from benchmarks.method.results import load
from benchmarks.method.worlds import EARLY_WORLDS, WORLDS, build_world
from benchmarks.style import STYLE

BASELINE, ORDER_ONE = "SFT", "IRIS α=1"
CURVES = {
    "SFT": "black",
    "SPIN λ=0.1": "tab:red",
    "SPACE": "tab:blue",
    "SPIF": "tab:cyan",
    "T-SPIN": "tab:brown",
    "IRIS α=1": "tab:green",
    "IRIS α=2": "tab:olive",
}
ORDERS = {
    f"IRIS {gap}/{per} c={c:g}": (color, style)
    for gap, color in (("margin", "tab:green"), ("variational", "tab:purple"), ("nll", "tab:orange"))
    for per, c, style in (("token", 1.0, ":"), ("sequence", 0.5, "-"))
}

mpl.rcParams.update(STYLE)


def write_report(results_path: Path) -> None:
    """Draw the figures and write `tables.md` beside the results."""
    folder = results_path.parent
    results = load(results_path)
    # A study that was stopped early shows the methods that are there in every world.
    studies, early = (
        [study for world in worlds if (study := Study(results, world)).seeds]
        for worlds in (WORLDS, EARLY_WORLDS)
    )
    methods = [method for method in METHODS if all(method in study.seeds for study in studies)]
    _draw_curves(studies, methods, folder / "curves.svg")
    if early:
        _draw_curves(early, methods, folder / "early.svg")
    _draw_differences(studies, methods, folder / "differences.svg")
    _draw_stability(studies, methods, folder / "stability.svg")
    _draw_orders(studies, methods, folder / "orders.svg")
    (folder / "tables.md").write_text("\n".join(_tables(studies + early)) + "\n")


def _draw_curves(studies: list[Study], methods: list[str], path: Path) -> None:
    """KL over start KL by iteration, mean over seeds with one standard deviation."""
    figure, axes = plt.subplots(1, len(studies), figsize=(3 * len(studies), 3.2), squeeze=False)
    for study, axis in zip(studies, axes[0], strict=True):
        for method, color in CURVES.items():
            if method not in methods:
                continue
            start = study.chosen("kl", method, 0)
            ratios = [
                [kl / at_start for kl, at_start in zip(study.chosen("kl", method, i), start, strict=True)]
                for i in range(ITERATIONS + 1)
            ]
            _curve(axis, ratios, color, method)
        axis.set(title=study.world, xlabel="iteration", ylim=(0.3, 1.6))
    axes[0, 0].set_ylabel("KL ÷ KL at the start")
    _save(figure, path, columns=len(CURVES))


def _curve(axis: Axes, values: list[list[float]], color: str, label: str) -> None:
    means, sds = np.array([(np.mean(v), np.std(v)) for v in values]).T
    axis.plot(means, color=color, label=label, marker="o", markersize=2.5, linewidth=1.3)
    axis.fill_between(range(len(means)), means - sds, means + sds, color=color, alpha=0.1, linewidth=0)


def _draw_differences(studies: list[Study], methods: list[str], path: Path) -> None:
    """Final KL of each method minus that of continued SFT, paired by seed, with 95 % intervals."""
    methods = [method for method in methods if method != BASELINE]
    figure, axes = plt.subplots(
        1, len(studies), figsize=(2.6 * len(studies) + 1.5, 6.5), sharey=True, squeeze=False
    )
    for study, axis in zip(studies, axes[0], strict=True):
        ends = [abs(d.mean) + d.half_width for d in (study.against(m, BASELINE) for m in methods)]
        reach = 1.05 * min(max(ends), study.start("kl").mean)
        for row, method in enumerate(methods):
            difference = study.against(method, BASELINE)
            outside = not abs(difference.mean) < reach
            place = math.copysign(reach, difference.mean) if outside else difference.mean
            width = 0 if outside else difference.half_width
            axis.errorbar(
                place,
                row,
                xerr=width,
                color=_color(difference),
                marker=">" if outside else "o",
                markersize=3.5,
            )
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set(title=study.world, xlim=(-reach, reach), xlabel="KL − KL of SFT")
    axes[0, 0].set_yticks(range(len(methods)), methods)
    axes[0, 0].invert_yaxis()
    _save(figure, path)


def _color(difference: Estimate) -> str:
    """Green: better than SFT by more than the interval; red: worse; grey: not told apart."""
    if abs(difference.mean) <= difference.half_width:
        return "tab:gray"
    return "tab:green" if difference.mean < 0 else "tab:red"


def _draw_stability(studies: list[Study], methods: list[str], path: Path) -> None:
    """Final KL over start KL of every method, world and learning rate."""
    ratios = np.array(
        [[study.worsened(method, rate) for study in studies for rate in LEARNING_RATES] for method in methods]
    )
    figure, axis = plt.subplots(figsize=(1.0 + 0.75 * ratios.shape[1], 0.27 * len(methods) + 1.3))
    axis.imshow(np.log2(np.clip(ratios, 0.1, 10)), cmap="RdYlGn_r", vmin=-2, vmax=2, aspect="auto")
    for (row, column), ratio in np.ndenumerate(ratios):
        text = "∞" if math.isinf(ratio) else f"{ratio:.2f}" if ratio < 10 else f"{ratio:.0f}"
        axis.text(column, row, text, ha="center", va="center", fontsize=7)
    labels = [f"{study.world}\n{rate:.0e}" for study in studies for rate in LEARNING_RATES]
    axis.set_xticks(range(len(labels)), labels, fontsize=6.5)
    axis.set_yticks(range(len(methods)), methods)
    axis.spines[:].set_visible(False)
    axis.set_title("final KL ÷ start KL at each learning rate (green: better than the start, red: worse)")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _draw_orders(studies: list[Study], methods: list[str], path: Path) -> None:
    """α by iteration under gap feedback."""
    figure, axes = plt.subplots(1, len(studies), figsize=(3 * len(studies), 2.8), sharey=True, squeeze=False)
    for study, axis in zip(studies, axes[0], strict=True):
        for method, (color, style) in ORDERS.items():
            if method not in methods:
                continue
            means = [np.mean(study.chosen("alpha", method, i)) for i in range(1, ITERATIONS + 1)]
            label = method.removeprefix("IRIS ")
            axis.plot(range(1, ITERATIONS + 1), means, color=color, linestyle=style, label=label)
        axis.set(title=study.world, xlabel="iteration")
    axes[0, 0].set_ylabel("order α")
    _save(figure, path, columns=len(ORDERS))


def _save(figure: plt.Figure, path: Path, columns: int = 0) -> None:
    figure.tight_layout(rect=(0, 0.08 if columns else 0, 1, 1))
    if columns:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=columns, frameon=False)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _tables(studies: list[Study]) -> list[str]:
    lines = [
        "# Method study: all numbers",
        "",
        "Means over seeds ± half a 95 % confidence interval (Student's t). KL in nats per response. Each",
        "seed's learning rate is the best on the other seeds; the column tells which ones were chosen.",
        "ΔKL is paired by seed against continued SFT: below 0 is better than SFT. **Bold**: the interval",
        "leaves out 0. Written by `make study`.",
    ]
    lines += ["", *_overall(studies), "", *_orders(studies)]
    for study in studies:
        start = ", ".join(f"{name} {study.start(name)}" for name in ("kl", "tv", "validity"))
        lines += [
            "",
            f"## {study.world}",
            "",
            build_world(study.world, 0).description,
            f"Start: {start}.",
            "",
        ]
        lines += [
            "| method | learning rate | KL | ΔKL to SFT | total variation | validity | seeds |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [_row(study, method) for method in METHODS if method in study.seeds]
    return lines


def _overall(studies: list[Study]) -> list[str]:
    """All worlds of the first starts in one table."""
    main = [study for study in studies if study.world in WORLDS]
    methods = [method for method in METHODS if all(method in study.seeds for study in main)]
    columns = " | ".join(f"at {rate:.0e}" for rate in LEARNING_RATES)
    lines = [
        "## All worlds together",
        "",
        "Final KL ÷ start KL, geometric mean over the five worlds and their seeds; and the worst world.",
        "",
        f"| method | at its chosen rate | {columns} | worst world at {LEARNING_RATES[-1]:.0e} |",
        "|---" * (len(LEARNING_RATES) + 3) + "|",
    ]
    for method in methods:
        ratios = [[study.worsened(method, rate) for study in main] for rate in LEARNING_RATES]
        values = [geometric_mean(study.worsened(method) for study in main)]
        values += [geometric_mean(row) for row in ratios] + [max(ratios[-1])]
        lines.append(f"| {method} | " + " | ".join(f"{value:.3f}" for value in values) + " |")
    return lines


def _orders(studies: list[Study]) -> list[str]:
    """What the defaults of α are taken from: every order against α = 1 at equal learning rates."""
    main = [study for study in studies if study.world in WORLDS]
    methods = [m for m in METHODS if m.startswith("IRIS") and all(m in study.seeds for study in main)]
    lines = [
        f"## Orders against {ORDER_ONE}",
        "",
        f"Mean log of final KL ÷ that of {ORDER_ONE} at the same learning rate, paired over worlds and",
        "seeds, ± two standard errors. Below 0 is better.",
        "",
        "| method | " + " | ".join(f"at {rate:.0e}" for rate in LEARNING_RATES) + " |",
        "|---" * (len(LEARNING_RATES) + 1) + "|",
    ]
    for method in methods:
        if METHODS[method].share < 1 or method == ORDER_ONE:
            continue
        cells = []
        for rate in LEARNING_RATES:
            logs = [value for study in main for value in study.log_ratios(method, ORDER_ONE, rate)]
            cells.append(f"{fmean(logs):+.3f} ± {2 * stdev(logs) / math.sqrt(len(logs)):.3f}")
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return lines


def _row(study: Study, method: str) -> str:
    rates = Counter(study.rate(method, seed) for seed in study.seeds[method])
    chosen = ", ".join(f"{rate:.0e}" for rate, _ in rates.most_common())
    difference = study.against(method, BASELINE)
    told_apart = abs(difference.mean) > difference.half_width
    cells = [
        method,
        chosen,
        Estimate.of(study.chosen("kl", method)),
        f"**{difference}**" if told_apart else difference,
        Estimate.of(study.chosen("tv", method)),
        Estimate.of(study.chosen("validity", method)),
        len(study.seeds[method]),
    ]
    return "| " + " | ".join(map(str, cells)) + " |"
