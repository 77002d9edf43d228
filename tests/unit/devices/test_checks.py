"""What a job asks of its devices, refused before anything starts, with what would be right."""

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


def test_a_backend_that_cannot_run_here_is_refused_with_the_reason_and_what_can(job):
    with pytest.raises(InputError) as error:
        prepare(job(attention="flash_attn_3", device="cpu"))
    (problem,) = error.value.problems
    assert (problem.field, problem.value) == ("attention", "flash_attn_3")
    assert "it runs on NVIDIA GPUs only; what can: auto, sdpa, sdpa_flash, sdpa_math" in problem.expected


@pytest.mark.parametrize(
    ("node", "backend", "reason"),
    [
        ("rtx4090", "flash_attn_3", "it needs sm90 or newer, not sm89"),
        ("mi300x", "sage", "it runs on NVIDIA GPUs only"),
        ("h100", "sdpa_aotriton", "it runs on ROCm only"),
    ],
)
def test_the_device_of_this_machine_decides(job, node, backend, reason):
    (problem,) = device_problems(job(attention=backend), NODES[node])
    assert reason in problem.expected


@pytest.mark.parametrize("options", [{}, {"attention": "sdpa_math", "device": "cpu"}])
def test_what_can_run_is_no_problem(job, options):
    assert device_problems(job(**options)) == []


def test_a_cluster_may_have_what_this_machine_has_not(job):
    assert device_problems(job(attention="flash_attn_3", address="auto")) == []


def test_a_memory_budget_too_small_is_refused_with_the_smallest_that_would_do(job):
    (problem,) = device_problems(job(memory_gb=0.001))
    assert problem.field == "memory_gb"
    assert "0.00 GB is too small for any mode" in problem.expected
    smallest = float(problem.expected.split("the smallest that would do is ")[1].split()[0])
    assert device_problems(job(memory_gb=smallest)) == []
