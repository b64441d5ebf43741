"""Reports as tables: for people at a terminal, and as Markdown for the documentation."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

ROWS = {
    "our pairs/s, references known": ("pairs_per_s", ".1f"),
    "our pairs/s, scoring references": ("with_reference_pairs_per_s", ".1f"),
    "TRL pairs/s, as it comes": ("peer_pairs_per_s", ".1f"),
    "TRL pairs/s, references precomputed": ("peer_precomputed_pairs_per_s", ".1f"),
    "ours, known ÷ TRL as it comes": ("ratio", ".2f"),
    "ours, scoring ÷ TRL as it comes": ("with_reference_ratio", ".2f"),
    "ours, known ÷ TRL precomputed": ("precomputed_ratio", ".2f"),
    "share of the matrix peak": ("peak_fraction", ".1%"),
}


def report_table(report: dict[str, Any]) -> Group:
    """Medians over repeats, with the least and greatest value."""
    dtypes: dict[str, dict[str, Any]] = report["dtypes"]
    table = Table("", *dtypes, box=box.SIMPLE_HEAD)
    for title, (key, style) in ROWS.items():
        if any(key in values for values in dtypes.values()):
            table.add_row(title, *(_spread(values, key, style) for values in dtypes.values()))
    table.add_row(
        "matrix peak, GFLOP/s", *(format(values["peak_gflops"], ".0f") for values in dtypes.values())
    )
    table.add_row(
        "peak memory, MiB", *(_sides(values["peak_memory_mib"], ".0f") for values in dtypes.values())
    )
    table.add_row("TRL trains in", *(", ".join(_ways(values)) for values in dtypes.values()))
    machine, model = report["machine"], report["model"]
    above = (
        f"{machine['cpu']}, {machine['threads']} threads. {model['parameters'] / 1e6:.1f} M parameters, "
        f"batches of {report['batch_pairs']} pairs."
    )
    return Group(Text(above), table)


def profile_table(seconds: dict[str, float]) -> str:
    """Seconds of a step by part, as Markdown."""
    whole = sum(seconds.values())
    lines = ["| part of a step | ms | share |", "|---|---:|---:|"]
    lines += [f"| {name} | {1e3 * value:.1f} | {value / whole:.0%} |" for name, value in seconds.items()]
    return "\n".join([*lines, f"| all | {1e3 * whole:.1f} | 100% |"])


def _spread(values: dict[str, Any], key: str, style: str) -> str:
    if key not in values:
        return "–"
    low, high = (format(values[f"{key}_{end}"], style) for end in ("min", "max"))
    return f"{values[key]:{style}} ({low} to {high})"


def _sides(values: dict[str, float], style: str) -> str:
    return ", ".join(f"{side.replace('_', ' ')} {value:{style}}" for side, value in values.items())


def _ways(values: dict[str, Any]) -> list[str]:
    return [values[key] for key in ("peer", "peer_precomputed") if key in values]
