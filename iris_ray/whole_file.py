"""Files that are there as a whole or not at all."""

from pathlib import Path


def write_whole(path: Path, text: str) -> None:
    """Write `text` in one go: who reads meanwhile, or after a crash, finds what was there before."""
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)
