"""The state of every clip, text and first frame of a job: arrays of states and queues of numbers.

A clip is *admitted* a little before it can be denoised: its inputs are then queued for encoding, so that the embeddings in the
object store stay bounded. Every operation costs the same whether a job has ten clips or a million. Methods that change the
state return the Drop and Finish actions that this causes.
"""

from collections import deque
from collections.abc import Mapping, Sequence, Set
from itertools import chain

import numpy as np

from ovi.stages import STAGES, DataKind, Stage
from ovi_ray.scheduling.actions import Action, Drop, Finish
from ovi_ray.scheduling.input_table import InputTable
from ovi_ray.scheduling.states import CLIP_STAGE_STATES, CLIP_TRANSITIONS, ClipState, InputState, check_transition
from ovi_ray.scheduling.task import ClipStatus, DataKey
from ovi_ray.scheduling.workload import Workload

_TRANSITIONS = tuple(CLIP_TRANSITIONS[state] for state in ClipState)
_HAS_LATENTS = (ClipState.DENOISED, ClipState.DECODING)


class JobState:
    """Clips by state and by kind, the tables of their inputs, and the queues of what is ready."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        kinds = len(workload.kinds)
        self.state = bytearray(workload.clips)
        """[clips] ClipState."""
        self.inputs: Mapping[Stage, InputTable] = {
            stage: InputTable(stage, inputs, kinds) for stage, inputs in workload.stage_inputs().items()
        }
        self._table_of = {table.data_kind: table for table in self.inputs.values()}
        self._needs = [
            (self.inputs[stage], inputs.of_clips) for stage, inputs in workload.stage_inputs().items() if inputs.count
        ]
        self._missing = bytearray(workload.clips)  # inputs that a WAITING clip waits for
        self._data_was_lost = False
        self._from_earlier_run: set[int] = set()
        self.clip_queues: Mapping[Stage, list[deque[int]]] = {
            stage: [deque() for _ in range(kinds)] for stage in CLIP_STAGE_STATES
        }
        """Stage -> [kinds] clips that are ready for it."""
        self._start_from_latents()
        self._count_states()
        self.ended = 0
        """Clips done or failed."""
        self.failed = 0
        self.new_latents = 0
        """Latents in the object store that this run made."""

    def _start_from_latents(self) -> None:
        for clip in dict.fromkeys(self.workload.clips_with_latents.tolist()):
            self.state[clip] = ClipState.DENOISED
            self._from_earlier_run.add(clip)
            self.clip_queues[Stage.DECODE][self.kind_of(clip)].append(clip)
            self._release_inputs(clip)

    def _count_states(self) -> None:
        kinds, state = range(len(self.workload.kinds)), np.frombuffer(self.state, np.uint8)
        of_kind = [self.workload.clip_kind == kind for kind in kinds]
        self._pending = [np.flatnonzero((state == ClipState.PENDING) & rows).astype(np.int32) for rows in of_kind]
        self._admitted = [0 for _ in kinds]  # how many of `_pending` were admitted
        self.counts: list[list[int]] = [np.bincount(state[rows], minlength=len(ClipState)).tolist() for rows in of_kind]
        """[kinds][states] clips."""
        self.totals = [sum(counts[state] for counts in self.counts) for state in ClipState]
        """[states] clips."""

    # --- queries

    def kind_of(self, clip: int) -> int:
        """The kind of a clip."""
        return int(self.workload.clip_kind[clip])

    def pending(self, kind: int) -> int:
        """Clips of a kind that are not admitted yet."""
        return len(self._pending[kind]) - self._admitted[kind]

    def needed_stages(self, kind: int) -> Set[Stage]:
        """Stages that waiting clips of a kind still need, whichever of their inputs are there."""
        counts = self.counts[kind]
        if any(counts[state] for state in (ClipState.PENDING, ClipState.WAITING, ClipState.READY)):
            return frozenset(Stage)
        return frozenset([Stage.DECODE] if counts[ClipState.DENOISED] else [])

    def queue(self, stage: Stage, kind: int) -> deque[int]:
        """Items of a kind that are ready for a stage."""
        table = self.inputs.get(stage)
        return self.clip_queues[stage][kind] if table is None else table.queue(kind)

    def is_queued(self, stage: Stage) -> bool:
        """Whether any item is ready for a stage."""
        return any(self.queue(stage, kind) for kind in range(len(self.workload.kinds)))

    def is_running(self, stage: Stage, item: int) -> bool:
        """Whether an item is in the middle of a stage."""
        table = self.inputs.get(stage)
        if table is None:
            return self.state[item] == CLIP_STAGE_STATES[stage].running
        return table.state[item] == InputState.RUNNING

    @property
    def undecoded_latents(self) -> int:
        """Latents made by this run that no worker decodes yet."""
        return max(0, self.new_latents - self.totals[ClipState.DECODING])

    @property
    def unstarted(self) -> int:
        """Clips that wait for their next stage, or for inputs."""
        totals = self.totals
        queued = sum(totals[states.queued] for states in CLIP_STAGE_STATES.values())
        return totals[ClipState.PENDING] + totals[ClipState.WAITING] + queued

    @property
    def undenoised(self) -> int:
        """Clips whose denoise has yet to start."""
        return sum(self.totals[: ClipState.DENOISING])

    @property
    def inputs_running(self) -> int:
        """Texts and first frames that are being encoded."""
        return sum(table.running for table in self.inputs.values())

    # --- transitions of any item

    def admit(self, kind: int) -> Sequence[Action]:
        """Admit the next clip of a kind: queue the inputs it needs that are not encoded yet."""
        clip = int(self._pending[kind][self._admitted[kind]])
        self._admitted[kind] += 1
        return self._await_inputs(clip)

    def start(self, stage: Stage, item: int) -> None:
        """A worker runs an item that has left its queue."""
        table = self.inputs.get(stage)
        if table is None:
            self._move(item, CLIP_STAGE_STATES[stage].running)
        else:
            table.start(item)

    def complete(self, stage: Stage, item: int) -> Sequence[Action]:
        """A stage of an item succeeded."""
        table = self.inputs.get(stage)
        if table is not None:
            return self._complete_input(table, item)
        return self._complete_decode(item) if STAGES[stage].output is None else self._complete_denoise(item)

    def requeue(self, stage: Stage, item: int, *, last: bool = False) -> Sequence[Action]:
        """A worker did not finish an item: it is ready again, ahead of the others, or after them. Latents are kept."""
        table = self.inputs.get(stage)
        if table is not None:
            table.requeue(item, last=last)
            return ()
        if stage is Stage.DENOISE and self._data_was_lost:  # it may have been stopped because an input was lost
            return self._await_inputs(item)
        queue = self.clip_queues[stage][self._move(item, CLIP_STAGE_STATES[stage].queued)]
        queue.append(item) if last else queue.appendleft(item)
        return ()

    def give_up(self, stage: Stage, item: int, message: str) -> Sequence[Action]:
        """A running item can never be finished: the clips that need it fail, now or when they are admitted."""
        table = self.inputs.get(stage)
        if table is None:
            return self._fail(item, message)
        waiting = [clip for clip in table.reject(item, message) if self.state[clip] == ClipState.WAITING]
        return [action for clip in waiting for action in self._fail(clip, message)]

    def lose(self, key: DataKey) -> Sequence[Action]:
        """A datum disappeared from the object store: whatever still needs it waits until it is produced again."""
        if key.kind is DataKind.LATENTS:
            return self._lose_latents(key.number)
        if not self._table_of[key.kind].lose(key.number):
            return ()
        self._data_was_lost = True
        return self._recheck_ready()

    def fail_kind(self, kind: int, message: str, *, denoised_too: bool) -> Sequence[Action]:
        """Fail every clip of a kind that is not denoised yet; with `denoised_too` also those that wait for decode."""
        clips = [*self.clip_queues[Stage.DENOISE][kind], *self._pending[kind][self._admitted[kind] :].tolist()]
        self.clip_queues[Stage.DENOISE][kind].clear()
        self._admitted[kind] = len(self._pending[kind])
        waiters = chain.from_iterable(table.waiters.values() for table in self.inputs.values())
        clips += [c for c in chain.from_iterable(waiters) if self._is_waiting(c) and self.kind_of(c) == kind]
        if denoised_too:
            clips += self.clip_queues[Stage.DECODE][kind]
            self.clip_queues[Stage.DECODE][kind].clear()
        return [action for clip in dict.fromkeys(clips) for action in self._fail(clip, message)]

    # --- a clip and its inputs

    def _inputs_of(self, clip: int) -> list[tuple[InputTable, int]]:
        return [(table, item) for table, of_clips in self._needs for item in of_clips[clip].tolist() if item >= 0]

    def _is_waiting(self, clip: int) -> bool:
        return self.state[clip] == ClipState.WAITING

    def _move(self, clip: int, state: ClipState) -> int:
        """Change the state of a clip. Returns its kind."""
        old = self.state[clip]
        if state not in _TRANSITIONS[old]:
            check_transition(_TRANSITIONS[old], f"clip {clip}", ClipState(old), state)
        kind = int(self.workload.clip_kind[clip])
        counts = self.counts[kind]
        counts[old] -= 1
        counts[state] += 1
        self.totals[old] -= 1
        self.totals[state] += 1
        self.state[clip] = state
        return kind

    def _await_inputs(self, clip: int) -> Sequence[Action]:
        """Wait for the inputs that are not in the object store; ready at once when there are none, failed if one is bad."""
        missing = 0
        self._move(clip, ClipState.WAITING)
        for table, item in dict.fromkeys(self._inputs_of(clip)):
            if table.state[item] == InputState.BAD:
                return self._fail(clip, table.errors[item])
            if table.state[item] != InputState.HELD:
                missing += 1
                table.request(item, clip)
        self._missing[clip] = missing
        if not missing:
            self._make_ready(clip)
        return ()

    def _make_ready(self, clip: int) -> None:
        self.clip_queues[Stage.DENOISE][self._move(clip, ClipState.READY)].append(clip)

    def _complete_input(self, table: InputTable, item: int) -> Sequence[Action]:
        actions: list[Action] = []
        for clip in table.finish(item):
            if not self._is_waiting(clip):
                continue
            self._missing[clip] -= 1
            if self._missing[clip]:
                continue
            if self._data_was_lost:  # another of its inputs may have been lost since it was counted
                actions += self._await_inputs(clip)
            else:
                self._make_ready(clip)
        actions += table.drop_if_unneeded(item)
        return actions

    def _complete_denoise(self, clip: int) -> Sequence[Action]:
        self.clip_queues[Stage.DECODE][self._move(clip, ClipState.DENOISED)].append(clip)
        self.new_latents += 1
        return self._release_inputs(clip)

    def _complete_decode(self, clip: int) -> Sequence[Action]:
        drop = self._drop_latents(clip)
        self._move(clip, ClipState.DONE)
        self.ended += 1
        return drop, Finish(clip=clip, status=ClipStatus.DONE)

    def _fail(self, clip: int, message: str) -> Sequence[Action]:
        """The clip must not be in a queue."""
        has_latents = self.state[clip] in _HAS_LATENTS
        drops: Sequence[Action] = [self._drop_latents(clip)] if has_latents else self._release_inputs(clip)
        self._move(clip, ClipState.FAILED)
        self.ended += 1
        self.failed += 1
        return [*drops, Finish(clip=clip, status=ClipStatus.FAILED, error=message)]

    def _release_inputs(self, clip: int) -> list[Action]:
        return [drop for table, item in self._inputs_of(clip) for drop in table.release(item)]

    # --- latents

    def _drop_latents(self, clip: int) -> Drop:
        self._forget_latents(clip)
        return Drop(key=DataKey(kind=DataKind.LATENTS, number=clip))

    def _forget_latents(self, clip: int) -> None:
        if clip in self._from_earlier_run:
            self._from_earlier_run.discard(clip)
        else:
            self.new_latents -= 1

    def _lose_latents(self, clip: int) -> Sequence[Action]:
        if self.state[clip] != ClipState.DENOISED:
            return ()
        self.clip_queues[Stage.DECODE][self.kind_of(clip)].remove(clip)
        self._forget_latents(clip)
        for table, item in self._inputs_of(clip):
            table.reserve(item)
        return self._await_inputs(clip)

    def _recheck_ready(self) -> Sequence[Action]:
        """Clips whose inputs were lost wait again."""
        actions: list[Action] = []
        for queue in self.clip_queues[Stage.DENOISE]:
            clips = list(queue)
            queue.clear()
            for clip in clips:
                actions += self._await_inputs(clip)
        return actions
