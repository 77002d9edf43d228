"""The starred clips of a job: `picks.csv` in its output folder, which `ovi-ray export --pick` reads."""

from dataclasses import dataclass

from ovi_ray.output.picks import PICKS, Picks
from ovi_ray.storage.paths import Location


@dataclass(kw_only=True, slots=True, frozen=True)
class Stars:
    """The stars in an output folder. The form of the file, its other columns and the order of its rows stay."""

    output_dir: Location

    def ids(self) -> list[str]:
        """Ids of the starred clips. Raises InputError for a file that cannot be read as picks, and OSError."""
        return [pick.clip_id for pick in Picks.starred(self.output_dir).rows]

    def put(self, clip_id: str, *, starred: bool) -> list[str]:
        """Star a clip, or take its star away; all stars after that. Raises what `ids` does: nothing is replaced then."""
        picks = Picks.starred(self.output_dir).with_star(clip_id, starred=starred)
        (self.output_dir / PICKS).write_bytes(picks.to_bytes())
        return [pick.clip_id for pick in picks.rows]
