"""The journal: which jobs were submitted from this machine, and where to. A small file for each.

It only saves typing `--to`: a target is asked for the state of a job, and every job can be found there without a journal.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Self

import platformdirs
from pydantic import TypeAdapter

from ovi.files import atomic_writer
from ovi_ray.submission.states import JOB_ID


@dataclass(kw_only=True, slots=True, frozen=True)
class Entry:
    """One job that was submitted from here."""

    job_id: str
    target: str
    """As it was given to `--to`."""
    output_dir: str
    submitted_at: str
    """ISO 8601, UTC."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Options of the submission that say where the job is, such as a namespace."""

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The entry in a file; None for a broken one."""
        with suppress(OSError, ValueError):
            return TypeAdapter(cls).validate_json(path.read_bytes())
        return None


class Journal:
    """See the module."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder or Path(platformdirs.user_state_path("ovi-ray")) / "jobs"

    def add(self, entry: Entry) -> None:
        """Write or replace an entry. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with atomic_writer(self._folder / f"{entry.job_id}.json") as local:
            local.write_text(json.dumps(asdict(entry)), encoding="utf-8")

    def find(self, job_id: str) -> Entry | None:
        """The entry of a job; None for one that was not submitted from here, and for what is no job's id."""
        return Entry.read(self._folder / f"{job_id}.json") if JOB_ID.fullmatch(job_id) else None

    def entries(self) -> Iterator[Entry]:
        """All entries, the oldest first."""
        found = (Entry.read(path) for path in self._folder.glob("[a-z0-9]*.json"))
        return iter(sorted((entry for entry in found if entry), key=lambda entry: entry.submitted_at))
