"""Pages into files."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from iris_ray.config import RunConfig
from iris_ray.errors import RunFolderError
from iris_ray.report.history import read_history
from iris_ray.run_folder import RunFolder

log = logging.getLogger(__name__)


def write_report(folder: RunFolder, config: RunConfig, summary: dict[str, Any]) -> None:
    """Write report.html at the end of a run, in whatever way it ended.

    By now everything else of the run is safe. A page that cannot be drawn is told of and must not make
    the run fail.
    """
    try:
        from iris_ray.report.page import run_page

        folder.report.write_text(run_page(read_history(folder, config, summary)))
    except Exception as error:
        again = f"Try again: iris-ray report {folder.path}"
        log.warning("%s could not be written (%r). %s", folder.report, error, again)


def rewrite_report(path: Path, out: Path | None = None, *, score: bool = False) -> Path:
    """Write the page of the run in `path`, also while it goes on; returns where it lies.

    By default report.html of the run folder. `score`: shade the sample pairs however large the model is.
    Raises `RunFolderError` if there is no run, or nothing happened in it yet.
    """
    from iris_ray.report.page import run_page

    folder = RunFolder.existing(path)
    return _write(out or folder.report, run_page(read_history(folder).that_began(), score=score))


def write_comparison(paths: Sequence[Path], out: Path) -> Path:
    """Write a page with the runs in `paths` side by side. Raises as `rewrite_report`."""
    from iris_ray.report.comparison import comparison_page

    histories = [read_history(RunFolder.existing(path)).that_began() for path in paths]
    return _write(out, comparison_page(histories))


def _write(out: Path, page: str) -> Path:
    try:
        out.write_text(page)
    except OSError as error:
        raise RunFolderError(f"{out}: the page cannot be written there: {error}") from error
    return out
