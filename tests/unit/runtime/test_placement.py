"""Where workers go, without Ray."""

from ovi_ray.runtime import placement
from ovi_ray.workers.actor import WorkerConfig


def test_nodes_without_a_label_get_workers_too():
    config = WorkerConfig(ckpt_dir="", model_name="", dtype="bfloat16", device="cuda", num_threads=1)
    assert [place.labels for place in placement._on_gpus(config, {"": 2})] == [{}, {}]
    mixed = [place.labels["vendor"] for place in placement._on_gpus(config, {"nvidia": 2, "": 1})]
    assert mixed == ["nvidia", "!in(nvidia,amd)", "nvidia"]
