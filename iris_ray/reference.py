"""Every setting as a page: `python -m iris_ray.reference > docs/configuration.md`."""

import json
import types
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from iris_ray.config import RunConfig

HEAD = """# Every setting

A recipe is a YAML file with these sections. Of several (`iris-ray run A.yaml B.yaml`) each changes what
stands in those before it, setting by setting; a list is replaced as a whole. `--set section.key=value`
changes one setting. This page is made by `python -m iris_ray.reference` of what stands beside the settings in
[iris_ray/config](../iris_ray/config). Limits of numbers are told by the error that breaking them gives.
"""


def page() -> str:
    sections = RunConfig.model_fields
    return "\n".join(
        [HEAD, *(part for name, field in sections.items() for part in _section(name, field.annotation))]
    )


def _section(path: str, model: Any) -> Iterator[str]:
    """The table of one section, then those of the sections inside it."""
    about = (model.__doc__ or "").strip()
    yield f"## {path}\n"
    if about:
        yield about + "\n"
    yield "| setting | values | default | |\n|---|---|---|---|"
    inner: list[tuple[str, Any]] = []
    for name, field in model.model_fields.items():
        models = [each for each in _options(field.annotation) if _is_section(each)]
        inner += [(f"{path}.{name}", each) for each in models]
        default = "" if field.default is PydanticUndefined else _literal(field.default)
        meaning = " ".join((field.description or "").split())
        yield f"| `{name}` | {_values(field.annotation)} | {default} | {_escaped(meaning)} |"
    yield ""
    for inner_path, each in inner:
        yield from _section(inner_path, each)


def _options(annotation: Any) -> list[Any]:
    """What a setting may be, if it may be one of several things."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]


def _values(annotation: Any) -> str:
    return " or ".join(_value(option) for option in _options(annotation))


def _value(option: Any) -> str:
    if option is type(None):
        return "empty"
    if _is_section(option):
        return "a section"
    if get_origin(option) is Literal:
        return ", ".join(f"`{value}`" for value in get_args(option))
    parts = [_values(part) for part in get_args(option) if part is not Ellipsis]
    if get_origin(option) is dict:
        return f"{parts[0]}: {parts[1]}"
    if parts:
        return f"list of {parts[0]}"
    names = {bool: "true, false", int: "integer", float: "number", str: "text", Any: "anything"}
    return names.get(option, "path")


def _is_section(option: Any) -> bool:
    return isinstance(option, type) and issubclass(option, BaseModel)


def _literal(value: Any) -> str:
    return (
        "empty"
        if value is None
        else f"`{json.dumps(value, default=str, ensure_ascii=False)}`".replace('"', "")
    )


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(page(), end="")
