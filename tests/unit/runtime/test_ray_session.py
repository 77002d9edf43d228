"""Connecting to Ray: which cluster, what is told of it, and the environment of its workers."""

import os

import pytest

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.runtime.ray_session import node_options, ray_session
from tests.support.fake_devices import NODES


@pytest.mark.ray
def test_the_environment_of_a_job_is_that_of_its_workers(tiny_dir, tmp_path):
    import ray

    job = JobSpec.from_options(
        text_prompt="A fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out", environment={"OVI_RAY_TEST": "a b"}
    )
    with ray_session(job):
        assert ray.get(ray.remote(num_cpus=0)(os.getenv).remote("OVI_RAY_TEST")) == "a b"


@pytest.mark.parametrize(
    ("node", "gpus", "vendor"),
    [("h100", 1, "nvidia"), ("gfx1151", 1, "amd"), ("cpu", 0, None), ("broken driver", 0, None)],
)
def test_ray_is_told_the_gpus_that_torch_can_use_and_their_labels(tiny_dir, tmp_path, node, gpus, vendor):
    job = JobSpec.from_options(text_prompt="a fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out")
    options = node_options(job, NODES[node])
    assert (options["num_gpus"], options["labels"].get("vendor")) == (gpus, vendor)
