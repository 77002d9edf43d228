"""Writes beside the device's work: how many, how much they hold, and how they end."""

from threading import Event, Thread

import pytest
import torch

from ovi_ray.workers.writes import DecodeEnded, FrameQueue, WriteThreads

FRAMES = torch.zeros(4, 2, 2, 3, dtype=torch.uint8)


def test_no_more_writes_than_the_limit_are_unfinished_and_the_next_one_waits_for_room():
    threads, gate, begun = WriteThreads(2), Event(), []
    held = [threads.submit(gate.wait) for _ in range(2)]
    third = Thread(target=lambda: begun.append(threads.submit(lambda: "third")))
    third.start()
    assert not begun
    assert not any(write.done() for write in held)
    gate.set()
    third.join()
    assert begun[0].result() == "third"


def test_a_write_that_waits_holds_up_no_other():
    threads, gate = WriteThreads(2), Event()
    slow = threads.submit(gate.wait)
    assert threads.submit(lambda: "done").result() == "done"
    assert not slow.done()
    gate.set()


def test_a_failure_is_that_of_its_own_write_and_makes_room():
    threads = WriteThreads(1)
    broken = threads.submit(lambda: 1 / 0)
    assert threads.submit(lambda: "done").result() == "done"
    with pytest.raises(ZeroDivisionError):
        broken.result()


def test_frames_come_out_in_order_and_no_more_wait_than_the_limit():
    queue, most, given = FrameQueue(2), [], []

    def device():
        for number in range(20):
            queue.put(FRAMES + number)
            given.append(number)
        queue.end()

    thread = Thread(target=device)
    thread.start()
    for number, frames in enumerate(queue):
        assert torch.equal(frames, FRAMES + number)
        most.append(len(given) - number)
    thread.join()
    assert max(most) <= 2 + 2  # what waits, what is held here, and what was handed over just now
    assert len(most) == 20


def test_a_device_that_waits_for_room_goes_on_when_the_writer_fails():
    queue, answers = FrameQueue(1), []
    device = Thread(target=lambda: answers.extend([queue.put(FRAMES), queue.put(FRAMES), queue.put(FRAMES)]))
    device.start()
    queue.close()
    device.join()
    queue.end()  # waits for nobody
    assert answers[-1] is False


def test_a_decode_that_ends_early_ends_its_writer():
    queue = FrameQueue(2)
    queue.put(FRAMES)
    queue.abort()
    frames = iter(queue)
    assert torch.equal(next(frames), FRAMES)
    with pytest.raises(DecodeEnded):
        next(frames)
