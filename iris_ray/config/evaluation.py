"""Settings of the evaluation."""

from pathlib import Path

from pydantic import Field

from iris_ray.config.section import Section


class Evaluation(Section):
    prompts: int = Field(256, ge=0)
    """Held-out prompts answered greedily per opponent. 0 switches the evaluation off."""
    answer_pattern: str | None = None
    """Regular expression with one group: compare what it finds last, not the whole response."""
    scorer: str | None = None
    """Scorer of one's own that a module of `run.plugins` registers."""
    tasks: list[str] = []
    """Tasks of lm-eval, `NAME` or `NAME:SHOTS`, that the generators answer for each model. Needs the extra
    `eval`."""
    tasks_folder: Path | None = None
    """Folder with YAML files of one's own tasks."""
    tasks_limit: int | None = Field(None, ge=1)
    """Ask only so many documents of each task."""
    likelihoods: bool = True
    """Also tell how likely held-out annotated responses and the former model's answers are."""
