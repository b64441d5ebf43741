"""Both sides side by side, in turns."""

import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.generator.block import Block
from benchmarks.generator.settings import Settings

Say = Callable[[str], None]


def measure(settings: Settings, say: Say) -> dict[str, Any]:
    """The report of `repeats` blocks of each side."""
    from benchmarks.generator.ours import Ours, make_files
    from benchmarks.generator.peer import Peer

    allowed = os.sched_getaffinity(0)
    ours: list[Block] = []
    peers: list[Block] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_files(settings, folder)
        # What belongs to neither side, as Ray's own processes, keeps off the measured core where it can.
        os.sched_setaffinity(0, allowed - {settings.core} or allowed)
        try:
            say("starting the generator")
            with Ours(settings, folder) as our_side:
                say("starting vLLM's LLM")
                with Peer(settings, folder) as peer_side:
                    # Iteration 1 warms up.
                    for iteration in range(1, settings.repeats + 2):
                        say(f"block {iteration} of {settings.repeats + 1}")
                        turns: list[tuple[Ours | Peer, list[Block]]] = [(our_side, ours), (peer_side, peers)]
                        # Back and forth: what drifts with time touches both sides alike.
                        for side, blocks in turns if iteration % 2 else reversed(turns):
                            blocks.append(side.block(iteration))
        finally:
            os.sched_setaffinity(0, allowed)
    return summarise(ours[1:], peers[1:])


def summarise(ours: list[Block], peers: list[Block]) -> dict[str, Any]:
    """Medians over blocks, each with its least and greatest value; ratios are taken block by block.

    `identical_responses` is the share of responses that both sides wrote alike, token by token.
    """
    both = list(zip(ours, peers, strict=True))
    pairs = [pair for our, peer in both for pair in zip(our.responses, peer.responses, strict=True)]
    return {
        **_spread("tokens_per_s", (block.tokens_per_s for block in ours)),
        **_spread("peer_tokens_per_s", (block.tokens_per_s for block in peers)),
        **_spread("ratio", (our.tokens_per_s / peer.tokens_per_s for our, peer in both)),
        "tokens_per_block": median(block.tokens for block in ours),
        "peer_tokens_per_block": median(block.tokens for block in peers),
        "identical_responses": sum(our == peer for our, peer in pairs) / len(pairs),
    }


def _spread(name: str, values: Iterable[float]) -> dict[str, float]:
    listed = list(values)
    return {name: median(listed), f"{name}_min": min(listed), f"{name}_max": max(listed)}
