"""Recipes and the changes to them, before they are checked."""

from pathlib import Path
from typing import Any

import yaml

from iris_ray.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in a section: YAML would keep the last one without a word."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                told = f"{key.value} stands twice. Put both into one"
                raise yaml.MarkedYAMLError(problem=told, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return node


def read(recipe: Path) -> dict[str, Any]:
    if not recipe.is_file():
        raise ConfigError(f"recipe {recipe} does not exist. Recipes of this project lie in recipes/.")
    try:
        values = yaml.load(recipe.read_text(encoding="utf-8"), _Loader) or {}
    except UnicodeDecodeError as error:
        raise ConfigError(f"recipe {recipe} is not text in UTF-8: {error}. Save it as such.") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"recipe {recipe} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"recipe {recipe} must hold sections such as 'run:' and 'model:'.")
    return values


def lay_over(values: dict[str, Any], changes: dict[str, Any]) -> None:
    """Set in `values` what stands in `changes`: sections setting by setting, everything else as a whole."""
    for key, change in changes.items():
        if isinstance(change, dict) and isinstance(values.get(key), dict):
            lay_over(values[key], change)
        else:
            values[key] = change


def apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or len(parts) < 2:
        raise ConfigError(f"--set {override}: write it as section.key=value, for instance run.name=second.")
    for part in parts[:-1]:
        inner = values.setdefault(part, {})
        if inner is None:
            inner = values[part] = {}
        if not isinstance(inner, dict):
            raise ConfigError(f"--set {override}: {part} is a value, not a section.")
        values = inner
    try:
        values[parts[-1]] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not valid YAML.") from error
