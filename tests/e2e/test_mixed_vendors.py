"""One job on a local Ray cluster whose nodes pretend to be of different vendors: workers are placed by their labels."""

import functools
import hashlib
import os

import pytest
import ray
from ray.cluster_utils import Cluster

from ovi.attention import AttentionBackend
from ovi.config import Architecture
from ovi.sampling.denoise import initial_noise
from ovi_ray.devices.probe import vendor_environment
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.preparation import prepare
from ovi_ray.rendering import render
from ovi_ray.runtime.placement import VENDORS, Placement, placements
from ovi_ray.runtime.ray_executor import ray_executor
from ovi_ray.runtime.ray_session import examine_cluster
from ovi_ray.workers.actor import WorkerConfig
from tests.support.jobs import result_rows
from tests.support.ray_start import start_patiently
from tests.support.waiting import PATIENCE_S
from tests.support.worker_hooks import hooked_environment

pytestmark = [pytest.mark.ray, pytest.mark.slow]

NODE = {"num_cpus": 1, "object_store_memory": 80_000_000}
BACKENDS = {"nvidia": AttentionBackend.SDPA_FLASH, "amd": AttentionBackend.SDPA_MATH}


@pytest.fixture(scope="module")
def mixed_cluster():
    """A head, and for each vendor a node that pretends to have a GPU."""
    local = start_patiently(lambda: Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False}))
    for vendor in VENDORS:
        add = functools.partial(local.add_node, wait=False, **NODE, num_gpus=1, labels={"vendor": vendor})
        start_patiently(add)
    local.wait_for_nodes(PATIENCE_S)
    yield local
    ray.shutdown()
    local.shutdown()


def config(tiny_dir, vendor):
    return WorkerConfig(
        ckpt_dir=str(tiny_dir),
        model_name="720x720_5s",
        dtype="float32",
        device="cpu",
        num_threads=1,
        memory_gb=4.0,
        attention=BACKENDS[vendor],
    )


def on_each_vendor(tiny_dir):
    return [
        Placement(
            config=config(tiny_dir, vendor),
            num_cpus=1,
            num_gpus=1,
            labels={"vendor": vendor},
            environment=vendor_environment(vendor),
        )
        for vendor in VENDORS
    ]


def look(tiny_dir):
    """The digest of a clip's noise on this node, the node's vendor label, and the environment of its workers."""
    noise = initial_noise(Architecture.read(tiny_dir).spec("720x720_5s"), 4, 4, (48, 20), seed=7)
    digest = hashlib.sha256(noise.video.numpy().tobytes() + noise.audio.numpy().tobytes()).hexdigest()
    return digest, ray.get_runtime_context().get_node_labels()["vendor"], dict(os.environ)


def test_one_job_runs_on_both_vendors_each_with_its_own_attention_and_one_that_cannot_decode_denoises(
    mixed_cluster, tiny_dir, tmp_path, monkeypatch
):
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("".join(f"a fox number {i}\n" for i in range(12)))
    job = JobSpec.from_options(
        prompts=prompts,
        ckpt_dir=tiny_dir,
        output_dir=tmp_path / "out",
        address=mixed_cluster.address,
        dtype="float32",
        sample_steps=8,
        slg_layer=1,
        video_frame_height_width="64x64",
        speculation=False,  # of two copies, one may finish what the other one wrote
    )
    log = tmp_path / "log"
    for name, value in hooked_environment(log, wait_for=2, step_s=0.15, out_of_memory="Decode").items():
        monkeypatch.setenv(name, value)
    open_executor = functools.partial(ray_executor, place=lambda job: on_each_vendor(tiny_dir))
    result = render(prepare(job), open_executor=open_executor)
    assert (result.done, result.failed) == (12, 0)
    rows = result_rows(tmp_path / "out")
    assert {row["attention_backend"] for row in rows} == {"sdpa_flash", "sdpa_math"}
    by_worker = {(row["worker"], row["attention_backend"]) for row in rows}
    assert len(by_worker) == 2
    assert list(log.glob("*.out-of-memory"))
    assert len({row["decode_worker"] for row in rows}) == 1


def test_noise_is_bit_equal_on_every_vendor_and_each_has_its_environment(mixed_cluster, tiny_dir):
    ray.init(address=mixed_cluster.address, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    looks = ray.get(
        [
            ray.remote(look)
            .options(
                num_gpus=1,
                label_selector={"vendor": vendor},
                runtime_env={"env_vars": vendor_environment(vendor)},
            )
            .remote(tiny_dir)
            for vendor in VENDORS
        ]
    )
    digests, vendors, environments = zip(*looks, strict=True)
    assert vendors == VENDORS
    here = initial_noise(Architecture.read(tiny_dir).spec("720x720_5s"), 4, 4, (48, 20), seed=7)
    expected = hashlib.sha256(here.video.numpy().tobytes() + here.audio.numpy().tobytes()).hexdigest()
    assert set(digests) == {expected}
    for vendor, environment in zip(VENDORS, environments, strict=True):
        assert vendor_environment(vendor).items() <= environment.items()
        others = set(vendor_environment("nvidia")) ^ set(vendor_environment("amd"))
        assert others & set(environment) == set(vendor_environment(vendor))


def test_workers_are_placed_by_vendor_in_turn(mixed_cluster, tiny_dir, tmp_path):
    ray.init(address=mixed_cluster.address, log_to_driver=False, logging_level="error", ignore_reinit_error=True)
    job = JobSpec.from_options(text_prompt="a fox", ckpt_dir=tiny_dir, output_dir=tmp_path, qint8=True)
    found = placements(job)
    assert {placement.labels["vendor"] for placement in found} == set(VENDORS)
    for placement in found:
        assert placement.environment == vendor_environment(placement.labels["vendor"])
        assert (placement.config.device, placement.config.attention, placement.config.weights) == (
            "cuda",
            "auto",
            "qint8",
        )


def test_doctor_examines_every_node_of_a_cluster(mixed_cluster, tiny_dir):
    ray.shutdown()
    reports = examine_cluster(mixed_cluster.address, str(tiny_dir), "720x720_5s", allow_inexact=False)
    assert len(reports) == 3
    for report in reports:
        assert report.devices[0].attention["video_self"].chosen in ("sdpa_flash", "sdpa_math")
