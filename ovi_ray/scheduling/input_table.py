"""The distinct items of one input stage: each is encoded once per job and dropped when no clip needs it any more."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from ovi.stages import STAGES, Stage
from ovi_ray.scheduling.actions import Drop
from ovi_ray.scheduling.states import INPUT_TRANSITIONS, InputState, check_transition
from ovi_ray.scheduling.task import DataKey
from ovi_ray.scheduling.workload import StageInputs

_TRANSITIONS = tuple(INPUT_TRANSITIONS[state] for state in InputState)


class InputTable:
    """States, uses and queues of the items of one input stage."""

    def __init__(self, stage: Stage, inputs: StageInputs, kinds: int) -> None:
        output = STAGES[stage].output
        assert output is not None
        self.stage = stage
        self.data_kind = output
        self.state = bytearray(inputs.count)
        """[items] InputState."""
        needed = inputs.of_clips[inputs.of_clips >= 0]
        self.uses: list[int] = np.bincount(needed, minlength=inputs.count).tolist()
        """[items] how often clips that are not denoised yet need each."""
        self.waiters: dict[int, list[int]] = {}
        """Item -> admitted clips that wait for it."""
        self.errors: dict[int, str] = {}
        """Item -> why it can never be encoded."""
        self.encoded = 0
        """Items encoded so far, including those dropped since."""
        self.running = 0
        self.queues: list[deque[int]] = [deque() for _ in range(kinds if inputs.kinds is not None else 1)]
        """[kinds], or a single queue where the kind does not matter."""
        self._kinds = inputs.kinds
        self.tokens_of = inputs.tokens_of

    def __len__(self) -> int:
        return len(self.state)

    @property
    def queued(self) -> int:
        """Items that could be encoded now."""
        return sum(map(len, self.queues))

    @property
    def share_begun(self) -> float:
        """Share of all items that are encoded or being encoded."""
        return (self.encoded + self.running) / max(1, len(self))

    def queue(self, kind: int) -> deque[int]:
        """Items of a kind that could be encoded now."""
        return self.queues[0] if self._kinds is None else self.queues[kind]

    def _queue_of(self, item: int) -> deque[int]:
        return self.queues[0 if self._kinds is None else int(self._kinds[item])]

    def _move(self, item: int, state: InputState) -> None:
        if state not in _TRANSITIONS[self.state[item]]:
            old = InputState(self.state[item])
            check_transition(INPUT_TRANSITIONS[old], f"{self.data_kind} {item}", old, state)
        self.state[item] = state

    # --- transitions

    def request(self, item: int, clip: int) -> None:
        """An admitted clip waits for the item; it is queued unless it is on its way already."""
        self.waiters.setdefault(item, []).append(clip)
        if self.state[item] == InputState.ABSENT:
            self._move(item, InputState.QUEUED)
            self._queue_of(item).append(item)

    def start(self, item: int) -> None:
        """A worker encodes it; it has left its queue."""
        self._move(item, InputState.RUNNING)
        self.running += 1

    def discard_if_unneeded(self, item: int) -> bool:
        """Forget an item taken from its queue if no clip needs it any more. Returns whether it was forgotten."""
        if self.uses[item] > 0:
            return False
        self._move(item, InputState.ABSENT)
        return True

    def finish(self, item: int) -> Sequence[int]:
        """It is in the object store. Returns the clips that waited for it."""
        self._move(item, InputState.HELD)
        self.running -= 1
        self.encoded += 1
        return self.waiters.pop(item, ())

    def requeue(self, item: int, *, last: bool = False) -> None:
        """A worker did not finish it: it goes to the front of its queue or to its end, unless no clip needs it any more."""
        self.running -= 1
        if self.uses[item] <= 0:
            self._move(item, InputState.ABSENT)
            return
        self._move(item, InputState.QUEUED)
        queue = self._queue_of(item)
        queue.append(item) if last else queue.appendleft(item)

    def reject(self, item: int, message: str) -> Sequence[int]:
        """It can never be encoded. Returns the clips that waited for it."""
        self.running -= 1
        self._move(item, InputState.BAD)
        self.errors[item] = message
        return self.waiters.pop(item, ())

    def lose(self, item: int) -> bool:
        """It disappeared from the object store. Returns whether it was there."""
        if self.state[item] != InputState.HELD:
            return False
        self._move(item, InputState.ABSENT)
        self.encoded -= 1
        return True

    def reserve(self, item: int) -> None:
        """One more clip needs it."""
        self.uses[item] += 1

    def release(self, item: int) -> Sequence[Drop]:
        """One clip less needs it. Returns the Drop if it was the last one."""
        self.uses[item] -= 1
        return self.drop_if_unneeded(item)

    def drop_if_unneeded(self, item: int) -> Sequence[Drop]:
        """Drop it if it is in the object store and no clip needs it."""
        if self.uses[item] > 0 or self.state[item] != InputState.HELD:
            return ()
        self._move(item, InputState.ABSENT)
        return (Drop(key=DataKey(kind=self.data_kind, number=item)),)
