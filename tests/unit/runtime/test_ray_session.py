"""A connection to Ray as a job asks for it."""

import os

import pytest

from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.runtime.ray_session import ray_session


@pytest.mark.ray
def test_the_environment_of_a_job_is_that_of_its_workers(tiny_dir, tmp_path):
    import ray

    job = JobSpec.from_options(
        text_prompt="A fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out", environment={"OVI_RAY_TEST": "a b"}
    )
    with ray_session(job):
        assert ray.get(ray.remote(num_cpus=0)(os.getenv).remote("OVI_RAY_TEST")) == "a b"
