"""Versions of torch and cuDNN that are known to be wrong."""

import pytest

from ovi_ray.devices.known_faults import known_faults


@pytest.mark.parametrize(
    ("vendor", "torch_version", "cudnn", "named"),
    [
        ("nvidia", "2.13.0+cu128", 91_501, []),
        ("nvidia", "2.10.0", 92_000, []),
        ("nvidia", "2.9.1+cu128", 91_501, ["torch 2.9.1+cu128"]),
        ("nvidia", "2.13.0", 91_002, ["cuDNN 9.10.2"]),
        ("nvidia", "2.13.0", 91_500, ["cuDNN 9.15.0"]),
        ("nvidia", "2.9.0", 8_907, ["torch 2.9.0", "cuDNN 8.9.7"]),
        ("nvidia", "2.13.0", None, []),
        ("amd", "2.9.0", 3_005_000, []),
        ("", "2.9.0", None, []),
    ],
)
def test_a_version_with_a_known_fault_is_named(vendor, torch_version, cudnn, named):
    faults = known_faults(vendor=vendor, torch_version=torch_version, cudnn=cudnn)
    assert [name in fault for name, fault in zip(named, faults, strict=True)] == [True] * len(named)


def test_only_old_cudnn_is_said_to_convolve_wrongly():
    (old,) = known_faults(vendor="nvidia", torch_version="2.13.0", cudnn=91_002)
    (newer,) = known_faults(vendor="nvidia", torch_version="2.13.0", cudnn=91_400)
    assert "Conv3d" in old
    assert "Conv3d" not in newer
