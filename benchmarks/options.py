"""Options that benchmarks share: the shape of their model, and how often they measure."""

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
Hidden = Annotated[int, typer.Option(min=2, help="Hidden size of the model.")]
Count = Annotated[int, typer.Option(min=1)]
Intermediate = Annotated[int | None, typer.Option(min=1, help="3 · hidden unless told.")]
PromptTokens = Annotated[int, typer.Option(min=1, help="Mean length.")]
Spread = Annotated[float, typer.Option(min=0, max=0.99, help="Lengths are means · (1 ± this).")]
Repeats = Annotated[int, typer.Option(min=1, help="Blocks of each side.")]


def check_heads(hidden: int, heads: int, kv_heads: int) -> None:
    """Raises typer's `BadParameter` for a model that cannot be built."""
    if hidden % heads or heads % kv_heads or hidden // heads % 2:
        raise typer.BadParameter("heads must divide hidden into even parts, and kv-heads must divide heads.")
