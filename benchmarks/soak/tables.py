"""The report for people at a terminal."""

from typing import Any

from rich import box
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text


def report_tables(report: dict[str, Any]) -> Group:
    parts: list[Any] = [_runs(report), _faults(report), _kinds(report)]
    lost, http = report["losses"], report["http"]
    seconds = [
        f"{kind} {_number(http[f'{kind}_s_p50'], '.2f')} s, p99 {_number(http[f'{kind}_s_p99'], '.2f')} s"
        for kind in ("talk", "look", "give")
    ]
    lines = [
        f"{lost['steps']} steps, {lost['repeated_steps']} of them again; {lost['written_again']} pairs "
        f"written again, at most {lost['under_way']} more were under way in generators that died",
        f"{http['requests']} requests: "
        + ", ".join(f"{http[name]} {name}" for name in ("answered", "refused", "cut", "away", "broken")),
        "answered in: " + "; ".join(seconds),
        *(f"{kind}: {of['first']:.0f} MiB at first, {of['most']:.0f} at most, {of['last']:.0f} at last"
          for kind, of in report["sizes"].items()),
        *(f"  {count} x {told}" for told, count in http["told"].items()),
    ]  # fmt: skip
    parts.append(Text("\n".join(lines)))
    if report["reasons"]:
        parts.append("\n".join(f"[bold red]broken:[/bold red] {escape(each)}" for each in report["reasons"]))
    else:
        parts.append("[green]All bounds hold.[/green]")
    return Group(*parts)


def _runs(report: dict[str, Any]) -> Table:
    table = _table("run", "ended", "exit codes", "iterations", "committed", "lost", "doubled", "exact")
    for run in report["runs"]:
        ledger = [str(run["ledger"].get(name, "–")) for name in ("committed", "lost", "duplicated")]
        ends = " ".join(map(str, run["ends"]))
        table.add_row(
            run["run"], run["status"], ends, str(run["iterations"]), *ledger, "yes" if run["exact"] else "NO"
        )
    return table


def _faults(report: dict[str, Any]) -> Table:
    table = _table(
        "fault", "times", "overtaken", "until a step, s", "at most", "until a generator, s", "at most"
    )
    for row in report["faults"]:
        generators = ("generator_median_s", "generator_max_s") if _of_generator(row["fault"]) else ()
        seconds = [_number(row[name], ".1f") for name in ("step_median_s", "step_max_s", *generators)]
        table.add_row(row["fault"], str(row["times"]), str(row["overtaken"] or ""), *seconds)
    return table


def _of_generator(fault: str) -> bool:
    return fault.endswith(("generator", "engine"))


def _kinds(report: dict[str, Any]) -> Table:
    table = _table(
        "process", "lives", "at a time", "most MiB", "MiB/hour", "file handles", "handles/hour", "threads"
    )
    for row in report["kinds"]:
        table.add_row(
            row["kind"],
            str(row["lives"]),
            str(row["at_a_time"]),
            f"{row['peak_mib']:,.0f}",
            _slope(row["memory_mib_per_hour"]),
            str(row["handles"]),
            _slope(row["handles_per_hour"]),
            str(row["threads"]),
        )
    return table


def _table(*columns: str) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left")
    return table


def _slope(grown: dict[str, Any] | None) -> str:
    return f"{grown['per_hour']:+.1f} ± {grown['error']:.1f}" if grown else "–"


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)
