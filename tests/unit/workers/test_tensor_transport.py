"""Tensors through the object store."""

import numpy as np
import pytest
import torch

from ovi_ray.workers.tensor_transport import pack, unpack


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.int64])
def test_tensors_arrive_bit_for_bit(dtype):
    video, audio = torch.randn(3, 4, 5).to(dtype), torch.randn(2, 7).to(dtype).T
    arrived = unpack(pack(video=video, audio=audio))
    assert arrived["video"].dtype == dtype
    assert torch.equal(arrived["video"], video)
    assert torch.equal(arrived["audio"], audio)


def test_what_arrives_may_be_written_to_although_the_store_is_read_only():
    packed = pack(rows=torch.zeros(3))
    packed.arrays["rows"].flags.writeable = False
    unpack(packed)["rows"].add_(1)
    assert packed.arrays["rows"].sum() == 0


def test_bf16_travels_as_its_bits():
    assert pack(rows=torch.ones(2, dtype=torch.bfloat16)).arrays["rows"].dtype == np.uint16
