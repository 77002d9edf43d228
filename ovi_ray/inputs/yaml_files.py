"""Reading of YAML files, with the line of whatever is wrong."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.reader import Reader

from ovi_ray.errors import InputError, Problem
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.inputs.yaml_checks import check_yaml
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class YamlDocument:
    """The content of a YAML file."""

    content: Any
    """None for an empty file."""
    root: yaml.Node | None
    """The same with places in the file."""

    def line_of(self, place: Iterable[object]) -> int | None:
        """The line, from 1, of a key within keys, or of the innermost one of them that there is; None if there is none."""
        line, node = None, self.root
        for key in map(str, place):
            values = node.value if isinstance(node, yaml.MappingNode) else ()
            found = next(((name, value) for name, value in values if str(name.value) == key), None)
            if found is None:
                return line
            line, node = found[0].start_mark.line + 1, found[1]
        return line


def read_yaml_file(path: Location) -> YamlDocument:
    """Read a file of YAML. Raises InputError for one that cannot be read, is not YAML, or fails `check_yaml`."""
    text = "".join(read_lines(path))
    _check_characters(path, text)
    try:
        check_yaml(str(path), text)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        return YamlDocument(content=yaml.safe_load(text), root=root)
    except yaml.YAMLError as error:
        raise InputError([_problem(path, error)]) from None


def _check_characters(path: Location, text: str) -> None:
    """Raises InputError with each line that has a character which YAML has not."""
    problems = [
        _character_problem(path, number, ord(found[0]))
        for number, line in enumerate(text.split("\n"), start=1)
        if (found := Reader.NON_PRINTABLE.search(line))
    ]
    if problems:
        raise InputError(problems)


def _character_problem(path: Location, line: int, code: int) -> Problem:
    escape = f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
    expected = f'text without control characters, or with the escape "{escape}" in double quotes'
    return Problem(file=str(path), line=line, value=f"the character U+{code:04X}", expected=expected)


def _problem(path: Location, error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return Problem(file=str(path), value="not YAML", expected=f"YAML text ({' '.join(str(error).split())})")
    found = f"not YAML at column {mark.column + 1}: {getattr(error, 'problem', None) or error}"
    return Problem(file=str(path), line=mark.line + 1, value=found, expected="keys and values, a colon between them")
