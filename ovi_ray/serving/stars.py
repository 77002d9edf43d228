"""The starred clips of a job: `picks.csv` in its output folder, which `ovi-ray export --pick` reads."""

import csv
import io
from dataclasses import dataclass

from ovi_ray.storage.paths import Location

PICKS = "picks.csv"
_ID = "clip_id"


@dataclass(kw_only=True, slots=True, frozen=True)
class Stars:
    """The stars in an output folder. Other columns of the file, and the order of its rows, stay."""

    output_dir: Location

    def ids(self) -> list[str]:
        """Ids of the starred clips. Raises OSError."""
        return [row[_ID] for row in self._rows()[1]]

    def put(self, clip_id: str, *, starred: bool) -> list[str]:
        """Star a clip, or take its star away; all stars after that. Raises OSError."""
        names, rows = self._rows()
        kept = [row for row in rows if row[_ID] != clip_id or starred]
        if starred and all(row[_ID] != clip_id for row in kept):
            kept.append({_ID: clip_id})
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(kept)
        (self.output_dir / PICKS).write_bytes(text.getvalue().encode())
        return [row[_ID] for row in kept]

    def _rows(self) -> tuple[list[str], list[dict[str, str]]]:
        try:
            text = (self.output_dir / PICKS).read_text("utf-8-sig")
        except FileNotFoundError:
            return [_ID], []
        reader = csv.DictReader(io.StringIO(text, newline=""), restval="")
        names = [name for name in reader.fieldnames or () if name]
        if _ID not in names:
            return [_ID], []
        return names, [{name: row[name] for name in names} for row in reader if row[_ID]]
