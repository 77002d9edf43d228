"""The attention backends against each other."""

import pytest
import torch

from ovi.attention import AttentionBackend, attention


@pytest.mark.parametrize("shape", [(1, 7, 5, 2, 20), (2, 33, 64, 3, 8), (1, 1, 512, 4, 128)])
def test_every_backend_gives_plain_softmax_attention(shape):
    batch, queries, keys, heads, width = shape
    q, k, v = (torch.randn(batch, length, heads, width) for length in (queries, keys, keys))
    scores = torch.einsum("blhd,bshd->bhls", q.double(), k.double()) / width**0.5
    expected = torch.einsum("bhls,bshd->blhd", scores.softmax(-1), v.double()).float()
    for backend in AttentionBackend:
        torch.testing.assert_close(attention(q, k, v, backend), expected, rtol=1e-5, atol=1e-5)
