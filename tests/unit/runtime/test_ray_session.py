"""Connecting to Ray: which cluster, what is told of it, and the environment of its workers."""

import os
from contextlib import nullcontext, suppress

import psutil
import pytest

from ovi_ray.errors import ClusterError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.runtime.ray_session import node_options, ray_session
from tests.support.fake_devices import NODES


@pytest.mark.ray
def test_a_worker_has_the_environment_of_its_job_and_no_other_is_started(tiny_dir, tmp_path, monkeypatch):
    import ray

    monkeypatch.delenv("RAY_prestart_worker_first_driver")  # as a user starts it

    job = JobSpec.from_options(
        text_prompt="A fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out", environment={"OVI_RAY_TEST": "a b"}
    )
    with ray_session(job):
        assert ray.get(ray.remote(num_cpus=0)(Here).remote().variable.remote("OVI_RAY_TEST")) == "a b"
        assert len(list(worker_processes())) == 1


class Here:
    """An actor, as workers are."""

    def variable(self, name):
        return os.environ.get(name)


def worker_processes():
    """The workers of the Ray that this process has started."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            command = process.cmdline()
            is_new = any(part.endswith("default_worker.py") for part in command)
            named = "".join(command).strip()
            if is_new or (named.startswith("ray::") and not named.endswith("Agent")):
                yield process


@pytest.mark.parametrize(("clashes", "starts"), [(1, 2), (9, 3)])
def test_a_ray_whose_parts_took_the_same_port_is_started_again(tiny_dir, tmp_path, monkeypatch, clashes, starts):
    tried = []

    def init(**options):
        tried.append(options)
        if len(tried) <= clashes:
            raise ValueError(
                "Ray component metrics_export is trying to use a port number 45589 that is used by others."
            )

    monkeypatch.setattr("ray.init", init)
    job = JobSpec.from_options(text_prompt="A fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out")
    with nullcontext() if clashes < starts else pytest.raises(ClusterError), ray_session(job):
        pass
    assert len(tried) == starts
    assert tried[0] == tried[-1]


@pytest.mark.parametrize(
    ("node", "gpus", "vendor"),
    [("h100", 1, "nvidia"), ("gfx1151", 1, "amd"), ("cpu", 0, None), ("broken driver", 0, None)],
)
def test_ray_is_told_the_gpus_that_torch_can_use_and_their_labels(tiny_dir, tmp_path, node, gpus, vendor):
    job = JobSpec.from_options(text_prompt="a fox", ckpt_dir=tiny_dir, output_dir=tmp_path / "out")
    options = node_options(job, NODES[node])
    assert (options["num_gpus"], options["labels"].get("vendor")) == (gpus, vendor)
