"""Where every clip, text and first frame of a job stands. Pure: arrays of states, queues of numbers.

A clip is *admitted* a little before it can be denoised: its texts and its first frame are then queued for encoding,
so embeddings wait in bounded numbers. Every operation costs the same whether a job has ten clips or a million.
"""

from collections import deque
from enum import IntEnum

import numpy as np

from ovi_ray.scheduling.actions import Action, Drop, Finish
from ovi_ray.scheduling.task import ClipStatus, DataKey, DataKind
from ovi_ray.scheduling.workload import NO_FRAME, Workload


class ClipState(IntEnum):
    """Where a clip stands."""

    UNSEEN = 0
    """Not admitted yet."""
    WAITING = 1
    """Admitted; a text or the first frame is not encoded yet."""
    READY = 2
    DENOISING = 3
    LATENTS = 4
    """Denoised, waits for decode."""
    DECODING = 5
    DONE = 6
    FAILED = 7


class DataState(IntEnum):
    """Where a text or a first frame stands."""

    ABSENT = 0
    QUEUED = 1
    RUNNING = 2
    HELD = 3
    """In the object store."""
    BAD = 4


class Inputs:
    """The texts, or the first frames, of a job: encoded once each, dropped when no clip needs them any more."""

    def __init__(self, kind: DataKind, uses: np.ndarray) -> None:
        self.kind = kind
        self.state = bytearray(len(uses))
        self.uses: list[int] = uses.tolist()
        """Clips (times their uses) that still need each."""
        self.waiters: dict[int, list[int]] = {}
        """Admitted clips that wait for each."""
        self.errors: dict[int, str] = {}
        self.encoded = 0
        """How many were encoded so far, those dropped since included."""
        self.running = 0

    def release(self, number: int, uses: int = 1) -> Drop | None:
        """One clip less needs it; the Drop when it was the last and the datum is held."""
        self.uses[number] -= uses
        if self.uses[number] > 0 or self.state[number] != DataState.HELD:
            return None
        return self.forget(number)

    def forget(self, number: int) -> Drop:
        """It leaves the object store."""
        self.state[number] = DataState.ABSENT
        return Drop(key=DataKey(kind=self.kind, number=number))


class Board:
    """The state of a job's data. `out` collects the Finish and Drop actions that its methods cause."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        kinds = len(workload.kinds)
        self.out: list[Action] = []
        self.state = bytearray(workload.clips)
        self._missing = bytearray(workload.clips)
        self._uncounted: set[int] = set()  # clips whose latents an earlier run made
        self._losses = False
        self.texts = Inputs(DataKind.TEXT, np.bincount(workload.clip_texts.ravel(), minlength=workload.texts))
        frames = workload.frames_of_clips
        self._has_frames = bool((frames != NO_FRAME).any())
        self.frames = Inputs(
            DataKind.FIRST_FRAME, np.bincount(frames[frames != NO_FRAME], minlength=workload.first_frames)
        )
        self.text_queue: deque[int] = deque()
        self.frame_queue: list[deque[int]] = [deque() for _ in range(kinds)]
        self.ready: list[deque[int]] = [deque() for _ in range(kinds)]
        self.latents: list[deque[int]] = [deque() for _ in range(kinds)]
        self._start_from_latents()
        self._cursor = [0] * kinds
        unseen = np.frombuffer(self.state, np.uint8) == ClipState.UNSEEN
        self._rows = [np.flatnonzero(unseen & (workload.clip_kind == k)).astype(np.int32) for k in range(kinds)]
        self.counts: list[list[int]] = [[0] * len(ClipState) for _ in range(kinds)]
        """[kinds][states] clips."""
        for k in range(kinds):
            of_kind = np.frombuffer(self.state, np.uint8)[workload.clip_kind == k]
            self.counts[k] = np.bincount(of_kind, minlength=len(ClipState)).tolist()
        self.totals = [sum(counts[state] for counts in self.counts) for state in ClipState]
        """[states] clips."""
        self.ended = 0
        self.failed = 0
        self.new_latents = 0
        """Latents in the object store that this run made."""

    def _start_from_latents(self) -> None:
        kept = self.workload.clips_with_latents
        for clip in kept.tolist():
            if self.state[clip] == ClipState.LATENTS:
                continue
            self.state[clip] = ClipState.LATENTS
            self._uncounted.add(clip)
            self.latents[self.kind_of(clip)].append(clip)
            self._release_inputs(clip)

    # --- reading

    def kind_of(self, clip: int) -> int:
        """The kind of a clip."""
        return int(self.workload.clip_kind[clip])

    def unseen(self, kind: int) -> int:
        """Clips of a kind that are not admitted yet."""
        return len(self._rows[kind]) - self._cursor[kind]

    def _inputs_of(self, clip: int) -> list[tuple[Inputs, int]]:
        inputs = [(self.texts, text) for text in self.workload.clip_texts[clip].tolist()]
        if self._has_frames:
            frame = int(self.workload.frames_of_clips[clip])
            if frame != NO_FRAME:
                inputs.append((self.frames, frame))
        return inputs

    # --- the road of a clip

    def admit(self, kind: int) -> None:
        """Admit the next clip of a kind: queue what it needs that is not there yet."""
        clip = int(self._rows[kind][self._cursor[kind]])
        self._cursor[kind] += 1
        self._enter(clip)

    def _move(self, clip: int, state: ClipState) -> int:
        kind = int(self.workload.clip_kind[clip])
        counts = self.counts[kind]
        counts[self.state[clip]] -= 1
        counts[state] += 1
        self.totals[self.state[clip]] -= 1
        self.totals[state] += 1
        self.state[clip] = state
        return kind

    def _enter(self, clip: int) -> None:
        missing = 0
        kind = self._move(clip, ClipState.WAITING)
        for inputs, number in dict.fromkeys(self._inputs_of(clip)):
            state = inputs.state[number]
            if state == DataState.BAD:
                self.fail(clip, inputs.errors[number])
                return
            if state == DataState.HELD:
                continue
            missing += 1
            inputs.waiters.setdefault(number, []).append(clip)
            if state == DataState.ABSENT:
                self._queue_input(inputs, number, kind)
        self._missing[clip] = missing
        if not missing:
            self.ready[self._move(clip, ClipState.READY)].append(clip)

    def _queue_input(self, inputs: Inputs, number: int, kind: int, *, front: bool = False) -> None:
        inputs.state[number] = DataState.QUEUED
        if inputs is self.frames:
            kind = int(self.workload.first_frame_kind[number])
        queue = self.text_queue if inputs is self.texts else self.frame_queue[kind]
        if front:
            queue.appendleft(number)
        else:
            queue.append(number)

    def input_started(self, inputs: Inputs, number: int) -> None:
        """A worker encodes it; it has left its queue."""
        inputs.state[number] = DataState.RUNNING
        inputs.running += 1

    def input_unneeded(self, inputs: Inputs, number: int) -> bool:
        """Whether no clip needs it any more, although it was queued. It is then forgotten."""
        if inputs.uses[number] > 0:
            return False
        inputs.state[number] = DataState.ABSENT
        return True

    def input_encoded(self, inputs: Inputs, number: int) -> None:
        """It is in the object store; clips that waited for it alone become ready."""
        inputs.state[number] = DataState.HELD
        inputs.running -= 1
        inputs.encoded += 1
        for clip in inputs.waiters.pop(number, ()):
            if self.state[clip] != ClipState.WAITING:
                continue
            self._missing[clip] -= 1
            if self._missing[clip]:
                continue
            if self._losses:  # another of its inputs may have been lost since it was counted
                self._enter(clip)
            else:
                self.ready[self._move(clip, ClipState.READY)].append(clip)
        if inputs.uses[number] <= 0 and inputs.state[number] == DataState.HELD:
            self.out.append(inputs.forget(number))

    def input_returned(self, inputs: Inputs, number: int) -> None:
        """A worker did not finish it: it goes first in its queue again, unless no clip needs it any more."""
        inputs.running -= 1
        if inputs.uses[number] <= 0:
            inputs.state[number] = DataState.ABSENT
            return
        self._queue_input(inputs, number, 0, front=True)

    def input_bad(self, inputs: Inputs, number: int, message: str) -> None:
        """It can never be encoded: clips that need it fail, now or when their turn comes."""
        inputs.running -= 1
        inputs.state[number] = DataState.BAD
        inputs.errors[number] = message
        for clip in inputs.waiters.pop(number, ()):
            if self.state[clip] == ClipState.WAITING:
                self.fail(clip, message)

    def denoise_started(self, clip: int) -> None:
        """A worker denoises it; it has left its queue."""
        self._move(clip, ClipState.DENOISING)

    def denoise_returned(self, clip: int) -> None:
        """A worker did not finish it: it is ready again, ahead of the others."""
        if self._losses:  # perhaps it was stopped because an input was lost
            self._enter(clip)
        else:
            self.ready[self._move(clip, ClipState.READY)].appendleft(clip)

    def denoised(self, clip: int) -> None:
        """Its latents are in the object store; its inputs are released."""
        self.latents[self._move(clip, ClipState.LATENTS)].append(clip)
        self.new_latents += 1
        self._release_inputs(clip)

    def decode_started(self, clip: int) -> None:
        """A worker decodes it; it has left its queue."""
        self._move(clip, ClipState.DECODING)

    def decode_returned(self, clip: int) -> None:
        """A worker did not finish it: its latents are kept and it goes first."""
        self.latents[self._move(clip, ClipState.LATENTS)].appendleft(clip)

    def decoded(self, clip: int) -> None:
        """Its video is committed."""
        self._drop_latents(clip)
        self._move(clip, ClipState.DONE)
        self.ended += 1
        self.out.append(Finish(clip=clip, status=ClipStatus.DONE))

    def fail(self, clip: int, message: str) -> None:
        """The clip ends without a video. It must not be in a queue."""
        if self.state[clip] in (ClipState.LATENTS, ClipState.DECODING):
            self._drop_latents(clip)
        else:
            self._release_inputs(clip)
        self._move(clip, ClipState.FAILED)
        self.ended += 1
        self.failed += 1
        self.out.append(Finish(clip=clip, status=ClipStatus.FAILED, error=message))

    def fail_kind(self, kind: int, message: str, *, latents_too: bool) -> None:
        """Every clip of a kind that waits for a denoise (and for a decode, if asked) ends without a video."""
        waiting = list(self.ready[kind])
        self.ready[kind].clear()
        for clip in self._rows[kind][self._cursor[kind] :].tolist():
            waiting.append(clip)
        self._cursor[kind] = len(self._rows[kind])
        for waiters in (*self.texts.waiters.values(), *self.frames.waiters.values()):
            waiting.extend(c for c in waiters if self.state[c] == ClipState.WAITING and self.kind_of(c) == kind)
        if latents_too:
            waiting.extend(self.latents[kind])
            self.latents[kind].clear()
        for clip in dict.fromkeys(waiting):
            self.fail(clip, message)

    def lost(self, key: DataKey) -> None:
        """A datum left the object store without being dropped: make it again if it is needed."""
        if key.kind is DataKind.LATENTS:
            self._lose_latents(key.number)
            return
        inputs = self.texts if key.kind is DataKind.TEXT else self.frames
        if inputs.state[key.number] == DataState.HELD:
            self._losses = True
            inputs.forget(key.number)
            inputs.encoded -= 1
            self._recheck_ready()

    def _lose_latents(self, clip: int) -> None:
        if self.state[clip] != ClipState.LATENTS:
            return
        self.latents[self.kind_of(clip)].remove(clip)
        self._forget_latents(clip)
        for inputs, number in self._inputs_of(clip):
            inputs.uses[number] += 1
        self._enter(clip)

    def _recheck_ready(self) -> None:
        """Clips whose inputs were lost wait again."""
        for queue in self.ready:
            clips = list(queue)
            queue.clear()
            for clip in clips:
                self._enter(clip)

    def _release_inputs(self, clip: int) -> None:
        for inputs, number in self._inputs_of(clip):
            drop = inputs.release(number)
            if drop is not None:
                self.out.append(drop)

    def _drop_latents(self, clip: int) -> None:
        self._forget_latents(clip)
        self.out.append(Drop(key=DataKey(kind=DataKind.LATENTS, number=clip)))

    def _forget_latents(self, clip: int) -> None:
        if clip in self._uncounted:
            self._uncounted.discard(clip)
        else:
            self.new_latents -= 1
