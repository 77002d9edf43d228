"""Values of sampling parameters for tests that must hold for all of them."""

from typing import Any

from ovi.config import SolverName
from ovi.quality import Quality
from ovi_ray.inputs.params import DEFAULT_PARAMS


def another_value(name: str) -> Any:
    """A valid value of a sampling parameter other than its default."""
    match getattr(DEFAULT_PARAMS, name):
        case SolverName():
            return SolverName.EULER
        case Quality():
            return Quality.HIGH
        case int() | float() as number:
            return number + 1
        case str() as text:
            return f"{text}, fog"
        case tuple():
            return (512, 992)
