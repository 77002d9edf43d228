"""Streamed blocks on fake streams: the order of copies and work, the memory on the device, and equal numbers."""

from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from ovi.config import Component, SamplingParams
from ovi.models.block_stream import BlockStream, pair_bytes, pinned_bytes
from ovi.pipeline import OviPipeline
from ovi.types import PromptEmbeds


@dataclass(eq=False)
class Copy:
    target: torch.Tensor
    source: torch.Tensor


@dataclass
class FakeStreams:
    """Copies happen when the computing stream waits for them, and not before: whoever does not wait reads what was there."""

    log: list = field(default_factory=list)
    pending: list = field(default_factory=list)
    pinned_sizes: list = field(default_factory=list)
    targets: set = field(default_factory=set)
    done: int = 0
    """Blocks that were computed."""

    def pinned(self, size):
        self.pinned_sizes.append(size)
        return torch.empty(size, dtype=torch.uint8)

    def mark(self):
        return self.done

    def copy(self, target, source, after):
        copied = Copy(target, source)
        self.targets.add(target.data_ptr())
        self.pending.append(copied)
        self.log.append(("copy", after))
        return copied

    def wait(self, copied):
        if copied in self.pending:
            for earlier in self.pending[: self.pending.index(copied) + 1]:  # a stream does one after the other
                earlier.target.copy_(earlier.source)
            del self.pending[: self.pending.index(copied) + 1]
        self.log.append(("wait", self.done))


def pairs(count, width=3):
    return [(nn.Linear(width, width), nn.Sequential(nn.Linear(width, 2), nn.LayerNorm(2))) for _ in range(count)]


def used(stream, streams, order):
    """The first weights of each pair, as they are when it is used."""
    seen = []
    for index, (block, _) in stream.run(order):
        seen.append((index, block.weight.clone()))
        streams.done += 1
    return seen


@pytest.mark.parametrize(
    "orders", [[[0, 1, 2, 3, 4]] * 3, [[0, 1, 2, 3, 4], [1, 2, 3, 4], [0, 2, 4]], [[0]], [[0, 1], [1]]]
)
def test_every_block_has_its_own_weights_when_it_is_used(orders):
    blocks, streams = pairs(5), FakeStreams()
    expected = [block.weight.clone() for block, _ in blocks]
    stream = BlockStream(blocks, torch.device("cpu"), streams)
    with torch.no_grad():
        for order in orders:
            seen = used(stream, streams, order)
            assert [index for index, _ in seen] == order
            assert all(torch.equal(weight, expected[index]) for index, weight in seen)


def test_the_next_block_is_copied_beside_the_work_of_this_one_and_after_that_of_the_one_before():
    blocks, streams = pairs(4), FakeStreams()
    used(BlockStream(blocks, torch.device("cpu"), streams), streams, [0, 1, 2, 3])
    copies = [after for kind, after in streams.log if kind == "copy"]
    assert copies == [0, 0, 1, 2, 3, 4]  # two at first, then each as soon as its buffer's block has been computed
    assert [what for what, _ in streams.log[:3]] == ["copy", "copy", "wait"]


def test_two_buffers_are_on_the_device_however_many_blocks_there_are():
    streams = FakeStreams()
    stream = BlockStream(pairs(7), torch.device("cpu"), streams)
    for _ in range(3):
        used(stream, streams, range(7))
    assert len(streams.targets) == 2
    assert streams.pinned_sizes == [pair_bytes(pairs(1)[0])] * 7


def test_the_next_pass_finds_its_first_blocks_on_the_device():
    streams = FakeStreams()
    stream = BlockStream(pairs(5), torch.device("cpu"), streams)
    used(stream, streams, range(5))
    copies = len(streams.pending)
    assert copies == 2  # of the first two
    used(stream, streams, [0, 1, 3, 4])
    assert sum(kind == "copy" for kind, _ in streams.log) == 2 + 5 + 4


def test_a_pass_that_was_broken_off_does_not_confuse_the_next_one():
    blocks, streams = pairs(4), FakeStreams()
    expected = [block.weight.clone() for block, _ in blocks]
    stream = BlockStream(blocks, torch.device("cpu"), streams)
    next(stream.run(range(4)))
    seen = used(stream, streams, range(4))
    assert all(torch.equal(weight, expected[index]) for index, weight in seen)


def test_pinned_memory_is_counted_as_torch_takes_it():
    assert [pinned_bytes(size) for size in (1, 2, 3, 2**20, 2**20 + 1)] == [1, 2, 4, 2**20, 2**21]


def test_a_clip_is_bit_for_bit_the_same_with_streamed_blocks_and_after_they_have_left_the_device(tiny_dir):
    plain, streamed = (
        OviPipeline.from_pretrained(tiny_dir, device="cpu", dtype=torch.float32, stream_blocks=streams)
        for streams in (False, True)
    )
    params = SamplingParams(video_frame_height_width=(64, 64), sample_steps=2, slg_layer=1)
    rows = torch.randn(5, 64)[:, : plain.architecture.text_encoder.dim]
    embeds = PromptEmbeds(positive=rows, video_negative=rows + 1, audio_negative=rows - 1)
    expected, found = plain.denoise(embeds, params), streamed.denoise(embeds, params)
    assert torch.equal(found.video, expected.video)
    assert torch.equal(found.audio, expected.audio)
    streamed.offload([Component.TRANSFORMER])
    assert torch.equal(streamed.denoise(embeds, params).video, expected.video)
