"""Memory of devices: what workers plan with is what the scheduler assumes."""

from types import SimpleNamespace

import pytest
import torch

from ovi.config import MODEL_SPECS, Architecture
from ovi.geometry import snap_size
from ovi.memory.limit import free_bytes, limit_memory
from ovi.memory.plan import MemoryMode, activations
from ovi.quality import Quality
from ovi.stages import Stage
from ovi.weights.formats import WeightFormat
from ovi_ray.devices.memory import component_sizes, memory_demand, plan_device
from ovi_ray.devices.probe import GB, integrated_bytes
from ovi_ray.scheduling.device_profile import (
    BF16_SIZES,
    INT8_SIZES,
    STREAMED_HOST_GB,
    STREAMED_SIZES,
    ActivationSizes,
)
from ovi_ray.scheduling.workload import ClipKind
from tests.support.fake_devices import H100, STRIX_HALO, FakeEdge


@pytest.mark.parametrize("name", MODEL_SPECS)
@pytest.mark.parametrize("shape", [(1, 1), (9, 16)])
@pytest.mark.parametrize("quality", Quality)
def test_the_scheduler_assumes_the_memory_that_workers_plan_with(name, shape, quality):
    arch, spec = Architecture(), MODEL_SPECS[name]
    height, width = snap_size(*shape, spec.video_area)
    kind = ClipKind(
        model_name=name,
        height=height,
        width=width,
        video_latent_length=spec.video_latent_length,
        sample_steps=50,
        quality=quality,
    )
    planned = activations(arch, spec, height, width, itemsize=2, quality=quality)
    for stage in Stage:
        assert ActivationSizes().of(stage, kind) == pytest.approx(planned[stage] / 1e9, rel=0.01)


@pytest.mark.parametrize(("sizes", "weights"), [(BF16_SIZES, WeightFormat.DTYPE), (INT8_SIZES, WeightFormat.QINT8)])
def test_the_scheduler_assumes_the_weights_that_workers_load(tmp_path, sizes, weights):
    for component, size in component_sizes(tmp_path, torch.bfloat16, weights).items():
        assert sizes.of(component) == pytest.approx(size, abs=0.005)


def test_the_scheduler_assumes_what_streamed_weights_take_of_the_device_and_of_its_host(tmp_path):
    demand = memory_demand(tmp_path, "720x720_5s", torch.bfloat16, WeightFormat.DTYPE, streams=True)
    for component, size in demand.components.items():
        assert STREAMED_SIZES.of(component) == pytest.approx(size / GB, abs=0.005)
    assert pytest.approx(demand.pinned / GB, abs=0.005) == STREAMED_HOST_GB


@pytest.mark.parametrize(("quality", "in_fp8"), [("exact", False), ("high", False), ("fast", True)])
def test_a_quality_with_8_bit_products_needs_room_for_their_factors(tmp_path, quality, in_fp8):
    exact, lossy = (
        memory_demand(tmp_path, "720x720_5s", torch.bfloat16, WeightFormat.DTYPE, (720, 720), quality=Quality(each))
        for each in ("exact", quality)
    )
    hidden = 3 * 31 * 22 * 22 * Architecture().video.ffn_dim  # a byte each, and two before they are narrowed
    assert lossy.of(Stage.DENOISE) - exact.of(Stage.DENOISE) == pytest.approx(1.1 * hidden * in_fp8, rel=0.01)
    assert lossy.of(Stage.DECODE) == exact.of(Stage.DECODE)


def test_8_bit_integers_leave_no_products_to_narrow(tmp_path):
    qint8 = WeightFormat.QINT8
    demands = [memory_demand(tmp_path, "720x720_5s", torch.bfloat16, qint8, quality=each) for each in Quality]
    assert len({demand.of(Stage.DENOISE) for demand in demands}) == 1


class FakeMemory:
    """The memory of a GPU, and the part of it that a process was held to."""

    def __init__(self, *, free_gb, total_gb):
        self.free, self.total = int(free_gb * GB), int(total_gb * GB)
        self.fraction = None

    def mem_get_info(self, device):
        return self.free, self.total

    def set_per_process_memory_fraction(self, fraction, device):
        assert device is None or isinstance(device, int)  # torch refuses a device without its number
        self.fraction = fraction


def pipeline_on(ckpt_dir, device):
    """The part of a pipeline that is asked for, as one opens on no device that is not there."""
    spec = Architecture().spec("720x720_5s")
    return SimpleNamespace(
        ckpt_dir=ckpt_dir,
        spec=spec,
        dtype=torch.bfloat16,
        weights=WeightFormat.DTYPE,
        stream_blocks=False,
        device=torch.device(device),
    )


def plan(tmp_path, card, *, free_gb, total_gb=80, memory_gb=None, host_gb=500.0):
    memory = FakeMemory(free_gb=free_gb, total_gb=total_gb)
    edge = FakeEdge(gpus=[card], rocm=hasattr(card, "gcnArchName"))
    return plan_device(pipeline_on(tmp_path, "cuda"), memory_gb=memory_gb, host_gb=host_gb, edge=edge, memory=memory)


def test_a_budget_starts_from_what_is_free(tmp_path):
    alone, beside = plan(tmp_path, H100, free_gb=80), plan(tmp_path, H100, free_gb=40)
    assert alone.mode is MemoryMode.RESIDENT
    assert beside.mode is MemoryMode.OFFLOADED
    assert beside.budget == pytest.approx(0.94 * 40 * GB)
    assert plan(tmp_path, H100, free_gb=20, memory_gb=30).budget < 20 * GB


def test_nothing_is_offloaded_to_the_memory_that_it_is_in(tmp_path):
    shared = SimpleNamespace(**vars(STRIX_HALO) | {"is_integrated": 1})
    apart, integrated = (plan(tmp_path, card, free_gb=30, total_gb=30).mode for card in (STRIX_HALO, shared))
    assert (apart, integrated) == (MemoryMode.OFFLOADED, MemoryMode.STAGED)


@pytest.mark.parametrize(
    ("total", "carved_out", "host", "expected"),
    [
        (96, 96, 31, 96),  # the firmware set it aside
        (108, 0.5, 120, 102.5),  # of the host's own
        (64, 0.5, 128, 64),
    ],
)
def test_an_integrated_gpu_has_what_was_set_aside_and_a_part_of_the_hosts(total, carved_out, host, expected):
    found = integrated_bytes(int(total * GB), carved_out=int(carved_out * GB), host=int(host * GB))
    assert found == pytest.approx(expected * GB)


def test_a_process_is_held_to_its_part_of_a_gpu():
    memory = FakeMemory(free_gb=70, total_gb=80)
    limit_memory(torch.device("cuda"), 20 * 10**9, memory)
    assert memory.fraction == pytest.approx(0.25)
    limit_memory(torch.device("cuda"), 200 * 10**9, memory)
    assert memory.fraction == 1.0


def test_a_cpu_is_neither_asked_nor_held():
    memory = FakeMemory(free_gb=1, total_gb=1)
    limit_memory(torch.device("cpu"), 1, memory)
    assert (memory.fraction, free_bytes(torch.device("cpu"), memory)) == (None, None)
