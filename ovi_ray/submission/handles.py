"""Handles: one submitted job or output folder, as the user names it, with what can be asked of it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ovi_ray.errors import COMMAND_LINE, InputError, Problem, show
from ovi_ray.storage.paths import Location, to_location
from ovi_ray.storage.uris import is_uri
from ovi_ray.submission.folder import FolderJob
from ovi_ray.submission.journal import Entry, Journal
from ovi_ray.submission.states import JOB_ID, JobStatus
from ovi_ray.submission.targets import Target, find_target


class Handle(Protocol):
    """A job that can be asked. Methods raise ClusterError, InputError and OSError."""

    def status(self) -> JobStatus:
        """The state of the job."""

    def logs(self, *, follow: bool) -> Iterator[bytes]:
        """Its output; with `follow` until it ends."""

    def stop(self) -> JobStatus:
        """Ask it to save what runs and to end; the state before that."""


@dataclass(kw_only=True, slots=True, frozen=True)
class TargetJob:
    """A job of a target, by its id."""

    target: Target
    job_id: str

    def status(self) -> JobStatus:
        """See Handle."""
        return self.target.status(self.job_id)

    def logs(self, *, follow: bool) -> Iterator[bytes]:
        """See Handle."""
        return self.target.logs(self.job_id, follow=follow)

    def stop(self) -> JobStatus:
        """See Handle."""
        return self.target.stop(self.job_id)


def find_job(name: str, *, to: str | None, journal: Journal) -> Handle:
    """The job that an id or an output folder names. `to` is the target, if the user gave it. Raises InputError.

    A folder of a job that was submitted from here, or that the target `to` knows, stands for that job: its target can stop it
    from anywhere.
    """
    if to is not None:
        target = find_target(to)
        return TargetJob(target=target, job_id=_id_of(name, target, to) if _is_folder(name) else name)
    if (entry := journal.find(name)) is not None:
        return _submitted(entry)
    if _is_folder(name):
        folder = _folder(name)
        submitted = [entry for entry in journal.entries() if entry.output_dir == str(folder)]
        if submitted:
            return _submitted(submitted[-1])
        return FolderJob(folder)
    what = "an id that no job submitted from here has" if JOB_ID.fullmatch(name) else "no job's id"
    expected = "an id that `ovi-ray jobs` shows, an output folder, or --to and the id for a job of another machine"
    raise InputError([Problem(file=COMMAND_LINE, field="ID", value=f"{show(name)}, {what}", expected=expected)])


def _submitted(entry: Entry) -> TargetJob:
    """The job of an entry. Raises InputError where its target is one no more."""
    target = find_target(entry.target, entry.options, given_by=f"the target of {entry.job_id}")
    return TargetJob(target=target, job_id=entry.job_id)


def _folder(name: str) -> Location:
    """Raises InputError for a URI that cannot be used."""
    try:
        return to_location(name).absolute()
    except ValueError as error:
        raise InputError([Problem(file=COMMAND_LINE, field="ID", value=show(name), expected=str(error))]) from None


def _is_folder(name: str) -> bool:
    return is_uri(name) or re.search(r"[/.]", name) is not None or Path(name).is_dir()


def _id_of(name: str, target: Target, to: str) -> str:
    """The last job of a target that renders into a folder. Raises InputError."""
    folder = str(_folder(name))
    found = [job.job_id for job in target.jobs() if job.output_dir == folder]
    if not found:
        expected = f"the output folder of a job of {to} (see `ovi-ray jobs --to {to}`), or a job's id"
        raise InputError([Problem(file=COMMAND_LINE, field="ID", value=show(name), expected=expected)])
    return found[-1]
