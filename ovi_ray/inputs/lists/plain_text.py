"""Plain text: a prompt a line."""

import re
from array import array

from ovi_ray.inputs.columns import PROMPT_COLUMN
from ovi_ray.inputs.lists.prompt_list import PromptList
from ovi_ray.inputs.notes import name_rows
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.storage.paths import Location

_HEADER = re.compile(rf'\s*"?{PROMPT_COLUMN}"?\s*([,;|\t]|$)', re.IGNORECASE)


def read_text(path: Location) -> PromptList:
    """Read a list of one prompt a line. Every line that is not blank is a prompt; notes name those that look otherwise."""
    found = [(number, line.rstrip("\r\n")) for number, line in enumerate(read_lines(path), start=1) if line.strip()]
    return PromptList(
        file=str(path),
        folder=path.parent,
        columns={PROMPT_COLUMN: [line for _, line in found]},
        rows=range(1, len(found) + 1),
        lines=array("q", [number for number, _ in found]),
        notes=_notes([line for _, line in found]),
    )


def _notes(prompts: list[str]) -> list[str]:
    comments = [row for row, line in enumerate(prompts, start=1) if line.lstrip().startswith(("#", "//"))]
    headers = [row for row, line in enumerate(prompts, start=1) if _HEADER.match(line)]
    return [
        f"{name_rows(rows)} may be meant as {what}: in a .txt every line is a prompt, and this job renders"
        f" {'them' if len(rows) > 1 else 'it'}"
        for what, rows in (("a comment", comments), ("the header of a .csv", headers))
        if rows
    ]
