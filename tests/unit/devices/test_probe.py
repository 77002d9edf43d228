"""Detection of a node's devices, with fake nodes behind the edge."""

import pytest
import torch

from ovi.weights.formats import WeightFormat
from ovi_ray.devices.memory import component_sizes
from ovi_ray.devices.probe import TorchEdge, describe_device, node_labels, probe, vendor_environment
from tests.support.fake_devices import H100, MI300X, NODES


@pytest.mark.parametrize(
    ("node", "vendor", "architecture", "memory_gib"),
    [
        ("h100", "nvidia", "sm90", 80),
        ("rtx4090", "nvidia", "sm89", 24),
        ("mi300x", "amd", "gfx942", 192),
        ("gfx1151", "amd", "gfx1151", 96),
        ("both vendors", "amd", "gfx942", 192),
    ],
)
def test_a_gpu_has_a_vendor_an_architecture_and_memory(node, vendor, architecture, memory_gib):
    (device,) = probe(NODES[node]).devices
    assert (device.vendor, device.architecture, device.torch_device) == (vendor, architecture, "cuda:0")
    assert node_labels(device) == {"vendor": vendor, "arch": architecture, "memory_gib": str(memory_gib)}


def test_a_node_without_a_gpu_has_its_cpu():
    probed = probe(NODES["cpu"])
    assert [device.vendor for device in probed.devices] == ["cpu"]
    assert probed.notes == ()
    assert "arch" not in node_labels(probed.devices[0])


def test_a_driver_that_fails_leaves_the_cpu_and_a_note():
    probed = probe(NODES["broken driver"])
    assert [device.vendor for device in probed.devices] == ["cpu"]
    assert "Driver/library version mismatch" in probed.notes[0]


def test_gpus_that_torch_cannot_use_are_noted():
    probed = probe(NODES["both vendors"])
    (note,) = probed.notes
    assert [device.vendor for device in probed.devices] == ["amd"]
    assert all(fact in note for fact in ("NVIDIA GPUs", probed.torch_build, "torch for CUDA"))


def test_a_device_is_described_through_the_edge():
    device = describe_device(torch.device("cuda", 1), NODES["mi300x"].__class__(gpus=[H100, MI300X], rocm=True))
    assert (device.name, device.torch_device) == ("AMD Instinct MI300X", "cuda:1")


def test_the_real_edge_works_on_this_machine():
    edge = TorchEdge()
    assert torch.__version__ in edge.torch_build()
    assert edge.count() == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert probe().devices


def test_each_vendor_has_its_own_environment():
    assert vendor_environment("amd") == {"TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL": "1"}
    assert "PYTORCH_CUDA_ALLOC_CONF" in vendor_environment("nvidia")
    assert vendor_environment("cpu") == vendor_environment("") == {}


def test_only_the_transformer_is_stored_narrower(tiny_dir):
    whole = component_sizes(tiny_dir, torch.bfloat16)
    narrow = component_sizes(tiny_dir, torch.bfloat16, WeightFormat.QINT8)
    assert {component for component in whole if narrow[component] != whole[component]} == {"transformer"}
