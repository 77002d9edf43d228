"""The shell scripts that start a job: Jinja templates in this package, whose values are quoted with the filter `quote`."""

import shlex
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined


def render_script(name: str, **values: Any) -> str:
    """The text of a script. A value that the template lacks is an error."""
    environment = Environment(  # noqa: S701 (shell, not HTML)
        undefined=StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
        comment_start_string="<#",  # {# stands in ${#array[@]}
        comment_end_string="#>",
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    template = files("ovi_ray.submission").joinpath(name).read_text(encoding="utf-8")
    return environment.from_string(template).render(values)
