"""Placement of workers, without Ray."""

import pytest

from ovi_ray.devices.probe import gpu_environment
from ovi_ray.errors import ClusterError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.runtime import placement
from ovi_ray.workers.actor import WorkerConfig

CONFIG = WorkerConfig(ckpt_dir="", model_name="", dtype="bfloat16", device="cuda", num_threads=1)
UNCOUNTED = ["node7 has 1 AMD GPU that Ray does not count"]


def job(**options):
    return JobSpec(text_prompt="a fox", ckpt_dir="ckpts", output_dir="out", **options)


def test_nodes_without_a_label_get_workers_too():
    assert [place.labels for place in placement._on_gpus(CONFIG, {"": 2})] == [{}, {}]
    mixed = [place.labels["vendor"] for place in placement._on_gpus(CONFIG, {"nvidia": 2, "": 1})]
    assert mixed == ["nvidia", "!in(nvidia,amd)", "nvidia"]


def test_workers_on_nodes_without_a_label_get_the_environment_of_every_vendor():
    (unlabelled, amd) = (placement._on_gpus(CONFIG, {vendor: 1})[0].environment for vendor in ("", "amd"))
    assert unlabelled == gpu_environment("nvidia") | gpu_environment("amd")
    assert amd == gpu_environment("amd")


def test_a_variable_that_the_user_chose_goes_before_the_vendors():
    (name,) = gpu_environment("nvidia")
    (place,) = placement._on_gpus(CONFIG, {"nvidia": 1}, {name: "max_split_size_mb:512", "OTHER": "1"})
    assert place.environment == {name: "max_split_size_mb:512"}


@pytest.mark.parametrize(("device", "uncounted"), [("auto", UNCOUNTED), ("gpu", UNCOUNTED), ("gpu", [])])
def test_cpus_never_stand_in_for_gpus_that_are_there_or_asked_for(device, uncounted):
    with pytest.raises(ClusterError, match="--device cpu") as raised:
        placement.check_gpus(job(device=device), 0, uncounted)
    assert all(line in str(raised.value) for line in uncounted)


def test_a_cluster_without_a_gpu_renders_on_its_cpus_and_says_so():
    (told,) = placement.check_gpus(job(), 0, [])
    assert "CPU" in told


def test_gpus_that_ray_does_not_count_are_told_beside_those_that_it_does():
    assert placement.check_gpus(job(), 8, UNCOUNTED) == UNCOUNTED
    assert placement.check_gpus(job(), 8, []) == []
