"""Checks for YAML that is valid, and useless as settings: on the stream of events, before anything is built."""

import re
from dataclasses import dataclass, field

import yaml

from ovi_ray.errors import InputError, Problem, show

MAX_DEPTH = 20
MAX_VALUES = 10_000
"""Values of a file once its aliases are replaced by what they stand for: a few lines of aliases can mean billions."""

_OTHER_NOTATION = re.compile(
    r"[-+]?0[\w]|[-+]?\w*[_:]"
)  # octal, hexadecimal and binary numbers, 1_000, and 1:30 for 90


@dataclass(slots=True)
class _Collection:
    """A mapping or a sequence that is being read."""

    is_mapping: bool
    anchor: str | None
    size: int = 1
    """Values in it so far, itself included."""
    key: str | None = None
    """The key whose value comes next."""
    awaits_key: bool = True
    lines: dict[str, int] = field(default_factory=dict)
    """Line of each key."""


def check_yaml(file: str, text: str) -> None:
    """Raises InputError for keys given twice, values that do not exist (such as the 31st of June), numbers that are
    not what they look like (010 is 8), nesting or aliases without an end; and yaml.YAMLError for text that is not YAML.
    """
    reader = _Reader(file)
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        reader.take(event)
    if reader.problems:
        raise InputError(reader.problems)


class _Reader:
    def __init__(self, file: str) -> None:
        self.problems: list[Problem] = []
        self._file = file
        self._open: list[_Collection] = []
        self._sizes: dict[str, int | None] = {}  # by anchor; None while what it names is being read
        self._builder = yaml.SafeLoader("")

    def take(self, event: yaml.Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        match event:
            case yaml.ScalarEvent():
                self._take_scalar(event, line)
            case yaml.AliasEvent():
                self._take_alias(event.anchor, line)
            case yaml.MappingStartEvent() | yaml.SequenceStartEvent():
                if len(self._open) == MAX_DEPTH:
                    self._refuse(
                        line, f"more than {MAX_DEPTH} levels of nesting", "settings that are nested less deeply"
                    )
                self._open.append(_Collection(isinstance(event, yaml.MappingStartEvent), event.anchor))
                self._name(event.anchor, None)
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                closed = self._open.pop()
                self._name(closed.anchor, closed.size)
                self._add(closed.size, line)

    def _take_scalar(self, event: yaml.ScalarEvent, line: int) -> None:
        inside = self._open[-1] if self._open else None
        if inside is not None and inside.is_mapping and inside.awaits_key:
            if event.value in inside.lines:
                found = f"given again, after line {inside.lines[event.value]}"
                self._note(line, ".".join([*self._sections(), event.value]), found, "each key once")
            inside.lines.setdefault(event.value, line)
        elif problem := self._problem_with(event):
            key = inside.key if inside is not None else None
            self._note(line, key, show(event.value), problem)
        self._name(event.anchor, 1)
        self._add(1, line, event.value)

    def _sections(self) -> list[str]:
        """The keys of the mappings that are being read, but for the innermost one."""
        return [outer.key for outer in self._open[:-1] if outer.key is not None]

    def _take_alias(self, anchor: str | None, line: int) -> None:
        size = self._sizes.get(anchor or "", 1)  # an unknown one is an error of the parser
        if size is None:
            self._refuse(line, f"*{anchor} inside of what it stands for", "an alias of something else")
        else:
            self._add(size, line)

    def _add(self, size: int, line: int, key: str | None = None) -> None:
        """Count a complete value in the collection that it is in."""
        if not self._open:
            return
        inside = self._open[-1]
        inside.size += size
        if inside.is_mapping:
            inside.key = key if inside.awaits_key else None
            inside.awaits_key = not inside.awaits_key
        if inside.size > MAX_VALUES:
            self._refuse(line, f"more than {MAX_VALUES:,} values", "fewer values, and fewer aliases of many")

    def _problem_with(self, event: yaml.ScalarEvent) -> str:
        """The right form where a scalar has the form of a number or a date and is none, or another; "" for any other."""
        tag = event.tag
        if tag is None or event.implicit[0]:
            tag = str(self._builder.resolve(yaml.ScalarNode, event.value, event.implicit))  # type: ignore[no-untyped-call]
        try:
            value = self._builder.construct_object(yaml.ScalarNode(tag, event.value))
        except ValueError as error:
            return f"a value that exists ({error}); text needs quotes"
        except yaml.YAMLError:  # told when the document is built
            return ""
        if type(value) in (int, float) and _OTHER_NOTATION.match(event.value):
            return f"a number in decimal notation (YAML takes this one for {value}); text needs quotes"
        return ""

    def _name(self, anchor: str | None, size: int | None) -> None:
        if anchor is not None:
            self._sizes[anchor] = size

    def _note(self, line: int, key: str | None, found: str, expected: str) -> None:
        self.problems.append(Problem(file=self._file, line=line, field=key, value=found, expected=expected))

    def _refuse(self, line: int, found: str, expected: str) -> None:
        """Stop reading: what follows may be without an end."""
        self._note(line, None, found, expected)
        raise InputError(self.problems)
