"""Templates of the pages: whatever a model or a data set wrote is escaped."""

import math
import re
import time
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from iris_ray.evaluation import share

NONE = "–"


def render(template: str, **values: Any) -> str:
    """The page of `template`, which lies in templates/."""
    environment = Environment(
        loader=PackageLoader("iris_ray.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "share": share,
        "number": number,
        "signed": signed,
        "duration": duration,
        "clock": clock,
        "code": code,
    }
    return environment.get_template(template).render(values)


def number(value: float | None, digits: int = 4) -> str:
    """With so many digits that count; whole numbers and large ones in full, in groups of three."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return NONE
    if isinstance(value, int) or 10**digits <= abs(value) < 1e15:
        return f"{value:,.0f}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def signed(value: float | None, digits: int = 2) -> str:
    if value is None:
        return NONE
    return f"{value:+.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float | None) -> str:
    """As hours, minutes and seconds, the two largest of them."""
    if seconds is None:
        return NONE
    if seconds < 10:
        return f"{seconds:.2g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def clock(seconds: float) -> str:
    """A time since 1970 as date and time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def code(text: str) -> Markup:
    """Text whose code stands in backticks."""
    return Markup(re.sub(r"`([^`]*)`", r"<code>\1</code>", str(escape(text))))
