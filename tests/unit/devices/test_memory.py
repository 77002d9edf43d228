"""Memory of devices: what workers plan with is what the scheduler assumes."""

import pytest
import torch

from ovi.config import MODEL_SPECS, Architecture
from ovi.geometry import snap_size
from ovi.memory.plan import activations
from ovi.stages import Stage
from ovi.weights.formats import WeightFormat
from ovi_ray.devices.memory import component_sizes
from ovi_ray.scheduling.device_profile import BF16_SIZES, INT8_SIZES, ActivationSizes
from ovi_ray.scheduling.workload import ClipKind


@pytest.mark.parametrize("name", MODEL_SPECS)
@pytest.mark.parametrize("shape", [(1, 1), (9, 16)])
def test_the_scheduler_assumes_the_memory_that_workers_plan_with(name, shape):
    arch, spec = Architecture(), MODEL_SPECS[name]
    height, width = snap_size(*shape, spec.video_area)
    kind = ClipKind(
        model_name=name, height=height, width=width, video_latent_length=spec.video_latent_length, sample_steps=50
    )
    planned = activations(arch, spec, height, width, itemsize=2)
    for stage in Stage:
        assert ActivationSizes().of(stage, kind) == pytest.approx(planned[stage] / 1e9, rel=0.01)


@pytest.mark.parametrize(("sizes", "weights"), [(BF16_SIZES, WeightFormat.DTYPE), (INT8_SIZES, WeightFormat.QINT8)])
def test_the_scheduler_assumes_the_weights_that_workers_load(tmp_path, sizes, weights):
    for component, size in component_sizes(tmp_path, torch.bfloat16, weights).items():
        assert sizes.of(component) == pytest.approx(size, abs=0.005)
