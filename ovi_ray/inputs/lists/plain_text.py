"""Plain text: a prompt a line."""

from array import array

from ovi_ray.errors import show
from ovi_ray.inputs.columns import PROMPT_COLUMN
from ovi_ray.inputs.lists.prompt_list import PromptList
from ovi_ray.inputs.text_files import read_lines
from ovi_ray.storage.paths import Location


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
    notes = []
    comments = [row for row, line in enumerate(prompts, start=1) if line.lstrip().startswith(("#", "//"))]
    if comments:
        rows = f"row {comments[0]}" if len(comments) == 1 else f"{len(comments)} rows (the first is row {comments[0]})"
        notes.append(f"{rows} look like comments and are prompts: in a .txt every line is one")
    if prompts and prompts[0].strip().lower().startswith(PROMPT_COLUMN):
        notes.append(
            f"row 1, {show(prompts[0].strip())}, looks like the header of a .csv and is a prompt: a .txt has no header"
        )
    return notes
