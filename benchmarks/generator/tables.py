"""The report as a table for people."""

from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

ROWS = {
    "generator actor, tokens/s": ("tokens_per_s", ",.0f"),
    "vLLM's LLM.generate, tokens/s": ("peer_tokens_per_s", ",.0f"),
    "ratio": ("ratio", ".3f"),
}


def report_table(report: dict[str, Any]) -> Group:
    """Medians over blocks, with the least and greatest value."""
    table = Table("", "median", "least", "greatest", box=box.SIMPLE_HEAD)
    for title, (key, style) in ROWS.items():
        table.add_row(title, *(format(report[key + end], style) for end in ("", "_min", "_max")))
    machine, model, settings = report["machine"], report["model"], report["settings"]
    above = (
        f"{machine['cpu']}, one core. {model['parameters'] / 1e6:.1f} M parameters in {settings['dtype']}, "
        f"{settings['prompts']} prompts of {model['prompt_tokens']} tokens, {settings['replicas']} responses "
        f"of at most {settings['max_tokens']} tokens to each, {settings['concurrency']} at the same time; "
        f"{settings['repeats']} blocks of each side."
    )
    below = f"{report['identical_responses']:.1%} of the responses are the same on both sides."
    return Group(Text(above), table, Text(below))
