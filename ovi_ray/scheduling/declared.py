"""Frozen dataclasses with a number for each entry of a table, such as the table of stages: a new entry is a new field."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar


class Declared:
    """Base of such a class."""

    __slots__ = ()
    if TYPE_CHECKING:  # a dataclass whose fields depend on the table
        __dataclass_fields__: ClassVar[dict[str, Any]]

        def __init__(self, **fields: Any) -> None: ...


Class = TypeVar("Class", bound=Declared)


def with_numbers(defaults: Mapping[str, float]) -> Callable[[type[Class]], type[Class]]:
    """A decorator that makes a class a frozen dataclass and adds fields with these names and defaults."""

    def declare(cls: type[Class]) -> type[Class]:
        cls.__annotations__ = {**cls.__annotations__, **dict.fromkeys(defaults, float)}
        for name, default in defaults.items():
            setattr(cls, name, default)
        return dataclass(kw_only=True, slots=True, frozen=True)(cls)

    return declare
