"""A denoise on two devices: a partner computes the negative pass of each step while the leader computes the positive one.

The leader owns the clip: state, solver, checkpoints. It sends the latents of a step and receives the prediction, so the
numbers are those of one device if both compute alike, which they compare before the first step. A partner may come and go at
any step; without one, the leader computes both passes.
"""

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ovi.attention import AttentionPlan
from ovi.errors import NonFiniteError, PartnerUnavailable
from ovi.finite import all_finite
from ovi.models.fusion import FusionTransformer, Grid, TextContext
from ovi.sampling.link import Link, Meeting, as_bytes
from ovi.stages import Stage

PATIENCE_S = 10.0
_LEAST_S = 0.01
_HEADER = 8  # bytes of a request's time, a float64
_END = math.nan  # the time of the request that ends the partner's work


class _Asked(NamedTuple):
    """A negative pass that the partner computes."""

    video: Tensor
    """Its latents, as the next one."""
    audio: Tensor
    answer: Callable[[], Tensor]
    began_s: float
    """When the leader began with the positive pass."""


class NegativePass(Protocol):
    """Another device that may compute the negative pass of a step."""

    def expect(self, signature: str) -> None:
        """A denoise begins, or goes on. `signature` tells all that must be equal on both devices."""
        ...

    def begin(self, *, video: Tensor, audio: Tensor, t: float) -> None:
        """Ask for the negative pass of latents in the transformer's dtype; returns before it is computed."""
        ...

    def result(self) -> tuple[Tensor, Tensor] | None:
        """The predictions for video and audio on the device of the latents; None where the caller is to compute them."""
        ...


class RemoteNegativePass:
    """The leader's end. Never raises: a partner that is lost is told of in `lost`, and not asked again."""

    def __init__(self, folder: Path, *, patience_s: float = PATIENCE_S) -> None:
        """`folder` is where the partner calls from, now or later.

        A partner with which the steps until now have taken `patience_s` longer than without one is not asked any more.
        """
        self.steps = 0
        """Steps whose negative pass the partner computed."""
        self.lost = ""
        """Why the partner is not asked any more; empty while it is, or has not come."""
        self._meeting = Meeting(folder)
        self._link: Link | None = None
        self._signature = ""
        self._asked: _Asked | None = None
        self._left_s = patience_s

    def expect(self, signature: str) -> None:
        """See NegativePass."""
        if self._asked is not None or (self._link is not None and signature != self._signature):
            self._lose("the denoise was begun anew")
        self._signature = signature

    def begin(self, *, video: Tensor, audio: Tensor, t: float) -> None:
        """See NegativePass."""
        if self.lost:
            return
        try:
            if self._link is None:
                self._link = self._join()
            if self._link is not None:
                self._link.patience = self._patience(0.0)
                self._link.send(_time(t))
                self._link.send(_packed(video, audio))
                answer = self._link.expect(video.nbytes + audio.nbytes)
                self._asked = _Asked(video, audio, answer, time.monotonic())
        except PartnerUnavailable as error:
            self._lose(str(error))

    def result(self) -> tuple[Tensor, Tensor] | None:
        """See NegativePass."""
        if self._link is None or self._asked is None:
            return None
        video, audio, answer, began_s = self._asked
        if video.device.type != "cpu":
            torch.accelerator.synchronize(video.device)  # nothing can be given to it before the answer is there
        own_s = time.monotonic() - began_s
        self._link.patience = self._patience(own_s)  # alone it would compute the other pass now
        try:
            content = answer()
        except PartnerUnavailable as error:
            self._lose(str(error))
            return None
        self._left_s += 2 * own_s - (time.monotonic() - began_s)
        self._asked = None
        self.steps += 1
        return _unpacked(content, video, audio)

    def close(self) -> None:
        """The denoise has ended: let the partner go."""
        if self._link is not None and self._asked is None:
            with suppress(PartnerUnavailable):  # it is gone already
                self._link.send(_time(_END))
        self._lose("the denoise has ended")

    def _join(self) -> Link | None:
        """The link to the partner; None while it is not there. Raises PartnerUnavailable for one that computes otherwise."""
        link = self._meeting.answer()
        if link is not None:
            link.patience = self._patience(0.0)
            link.send_text(self._signature)
            if refusal := link.receive_text():
                link.close()
                raise PartnerUnavailable(f"the other device computes otherwise: {refusal}; here {self._signature}")
        return link

    def _patience(self, more_s: float) -> timedelta:
        return timedelta(seconds=max(_LEAST_S, self._left_s + more_s))

    def _lose(self, reason: str) -> None:
        self.lost = self.lost or reason
        self._asked = None
        if self._link is not None:
            self._link.close()
            self._link = None


@dataclass(kw_only=True, slots=True, frozen=True)
class NegativePasses:
    """The inputs of a partner's passes; constant over a clip's steps."""

    transformer: FusionTransformer
    text: TextContext
    grid: Grid
    first_frame_is_clean: bool
    skip_layer: int | None
    attention: AttentionPlan
    video: Tensor
    """[48, F, h, w] on the device, in the transformer's dtype; its numbers do not matter."""
    audio: Tensor
    """[L, 20], the same."""
    signature: str
    """As in NegativePass."""

    def serve(self, folder: Path, should_stop: Callable[[], bool]) -> int:
        """Compute for the denoise that the folder leads to until it ends, or `should_stop()` returns true.

        Returns the number of steps. Raises PartnerUnavailable where the leader is gone or computes otherwise, and
        NonFiniteError for predictions from finite latents that are not finite.
        """
        link = Meeting(folder).call(should_stop)
        if link is None:
            return 0
        with link:
            self._compare(link)
            steps = 0
            while not should_stop():
                t = self._receive_time(link)
                if math.isnan(t) or should_stop():
                    break
                self._answer(link, t)
                steps += 1
            return steps

    def _compare(self, link: Link) -> None:
        expected = link.receive_text()
        is_equal = expected == self.signature
        link.send_text("" if is_equal else self.signature)
        if not is_equal:
            raise PartnerUnavailable(f"the other device computes otherwise: {expected}; here {self.signature}")

    def _receive_time(self, link: Link) -> float:
        return float(link.receive(_HEADER).view(torch.float64).item())

    def _answer(self, link: Link, t: float) -> None:
        content = link.receive(self.video.nbytes + self.audio.nbytes)
        video, audio = latents = _unpacked(content, self.video, self.audio)
        predictions = self.transformer(
            video=video,
            audio=audio,
            text=self.text,
            grid=self.grid,
            time=self.transformer.embed_time(t, self.grid, self.first_frame_is_clean),
            skip_layer=self.skip_layer,
            attention=self.attention,
        )
        _check_finite(latents, predictions, t)
        link.send(_packed(*predictions))


def _time(t: float) -> Tensor:
    return as_bytes(torch.tensor([t], dtype=torch.float64))


def _packed(video: Tensor, audio: Tensor) -> Tensor:
    return torch.cat([as_bytes(video), as_bytes(audio)])


def _unpacked(content: Tensor, video: Tensor, audio: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes as tensors of the dtypes and shapes of `video` and `audio`, on their device."""
    parts = content.split([video.nbytes, audio.nbytes])
    first, second = (
        part.clone().view(like.dtype).view(like.shape) for part, like in zip(parts, (video, audio), strict=True)
    )
    return first.to(video.device), second.to(audio.device)


def _check_finite(latents: tuple[Tensor, Tensor], predictions: tuple[Tensor, Tensor], t: float) -> None:
    """A device that makes bad numbers of good ones is at fault itself; for bad latents the leader is."""
    if torch.stack([all_finite(tensor) for tensor in predictions]).all():
        return
    if not torch.stack([all_finite(tensor) for tensor in latents]).all():
        raise PartnerUnavailable("the latents that the other device sent are not finite numbers")
    raise NonFiniteError(
        "predictions of the negative pass",
        stage=Stage.DENOISE,
        first=f"at time {t:g}",
        causes=("damaged weights of the transformer", "a faulty device"),
    )
