"""A job that its devices cannot run is refused before anything starts."""

import pytest

from ovi_ray.devices.checks import device_problems
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from tests.support.fake_devices import NODES


@pytest.fixture
def job(tiny_dir, tmp_path):
    def make(**options):
        return JobSpec.from_options(text_prompt="a fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out", **options)

    return make


def test_a_backend_that_cannot_run_here_is_refused_with_the_usable_ones(job):
    with pytest.raises(InputError) as raised:
        prepare(job(attention="flash_attn_3", device="cpu"))
    (problem,) = raised.value.problems
    assert (problem.field, problem.value) == ("attention", "flash_attn_3")
    assert "auto, sdpa, sdpa_flash, sdpa_math" in problem.expected


@pytest.mark.parametrize(
    ("node", "backend", "device_or_vendor"),
    [("rtx4090", "flash_attn_3", "sm89"), ("mi300x", "sage", "NVIDIA"), ("h100", "sdpa_aotriton", "ROCm")],
)
def test_the_backend_is_checked_against_the_device_of_this_machine(job, node, backend, device_or_vendor):
    (problem,) = device_problems(job(attention=backend), NODES[node])
    assert (problem.field, problem.value) == ("attention", backend)
    assert device_or_vendor in problem.expected


@pytest.mark.parametrize("options", [{}, {"attention": "sdpa_math", "device": "cpu"}])
def test_a_job_that_the_device_can_run_has_no_problems(job, options):
    assert device_problems(job(**options)) == []


def test_a_job_for_a_cluster_is_not_checked_against_this_machine(job):
    assert device_problems(job(attention="flash_attn_3", address="auto")) == []


@pytest.mark.parametrize("node", ["broken driver", "amd without rocm"])
@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_cpu_never_stands_in_for_a_gpu_that_cannot_be_used(job, node, device):
    (problem,) = device_problems(job(device=device), NODES[node])
    assert (problem.field, problem.value) == ("device", device)
    assert "GPU" in problem.expected
    assert device_problems(job(device="cpu"), NODES[node]) == []


def test_a_machine_without_a_gpu_renders_on_its_cpu(job):
    assert device_problems(job(), NODES["cpu"]) == []


def test_a_memory_budget_too_small_is_refused_with_the_smallest_sufficient_one(job):
    (problem,) = device_problems(job(memory_gb=0.001))
    assert (problem.field, problem.value) == ("memory_gb", "0.001")
    smallest = float(problem.expected.split("at least ")[1].split()[0])
    assert device_problems(job(memory_gb=smallest)) == []
