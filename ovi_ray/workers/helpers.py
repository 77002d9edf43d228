"""The workers that assist the denoise which a worker runs. They come when the driver has sent them, and go at any time."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

from torch import Tensor

from ovi.sampling.partner import RemoteNegativePass
from ovi_ray.storage.scratch import shared_folder


@dataclass(kw_only=True, slots=True, frozen=True)
class Invitation:
    """A worker comes to assist a request."""

    number: int
    """Of the request."""
    meeting: str
    """Name of the folder in which the two meet."""
    helper: str
    """Name of the worker."""


class Helpers:
    """The partner (`ovi.sampling.partner.NegativePass`) of the running denoise: whichever worker came last.

    `invite` is called on another thread than all else.
    """

    def __init__(self) -> None:
        self._invitation: Invitation | None = None
        self._number = 0
        self._signature = ""
        self._current: tuple[Invitation, RemoteNegativePass] | None = None
        self.names: list[str] = []
        """Workers that computed a step of this denoise, in order."""
        self.notes: list[str] = []
        """Why the leader went on alone; continues a sentence that begins with the clip."""

    def invite(self, invitation: Invitation) -> None:
        """A worker is sent to assist a request that runs or will run here."""
        self._invitation = invitation

    @contextmanager
    def of(self, number: int) -> Iterator[Self]:
        """The helpers of a request, for the time of its denoise."""
        self._number, self.names, self.notes = number, [], []
        try:
            yield self
        finally:
            self._part()

    def expect(self, signature: str) -> None:
        """See NegativePass."""
        self._signature = signature
        if self._current is not None:
            self._current[1].expect(signature)

    def begin(self, *, video: Tensor, audio: Tensor, t: float) -> None:
        """See NegativePass."""
        invitation = self._invitation
        if invitation is not None and invitation.number == self._number:
            self._part()
            remote = RemoteNegativePass(shared_folder(invitation.meeting))
            remote.expect(self._signature)
            self._invitation, self._current = None, (invitation, remote)
        if self._current is not None:
            self._current[1].begin(video=video, audio=audio, t=t)
            self._part_if_lost()

    def result(self) -> tuple[Tensor, Tensor] | None:
        """See NegativePass."""
        if self._current is None:
            return None
        found = self._current[1].result()
        self._part_if_lost()
        return found

    def _part_if_lost(self) -> None:
        if self._current is not None and (lost := self._current[1].lost):
            self.notes.append(f"goes on without {self._current[0].helper}, which assisted it: {lost}")
            self._part()

    def _part(self) -> None:
        """Let the present helper go."""
        if self._current is None:
            return
        (invitation, remote), self._current = self._current, None
        if remote.steps and invitation.helper not in self.names:
            self.names.append(invitation.helper)
        remote.close()
        shutil.rmtree(shared_folder(invitation.meeting), ignore_errors=True)
