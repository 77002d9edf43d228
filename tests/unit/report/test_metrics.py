import json
import re
import socket
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from ovi.stages import Stage
from ovi_ray.errors import InputError
from ovi_ray.protocol.observer import Cycle, Observers
from ovi_ray.report.metrics import MetricsObserver, address_of_part, metrics_server
from ovi_ray.scheduling.actions import Finish
from ovi_ray.scheduling.task import ClipStatus, FailureKind
from ovi_ray.storage.paths import to_location
from tests.support.fake_executor import Fails
from tests.support.recording_observer import RecordingObserver
from tests.support.rendered_jobs import RenderingExecutor, render_job, write_rows
from tests.support.s3 import free_port

DASHBOARD = Path(__file__).parents[3] / "cluster" / "grafana" / "ovi-ray.json"


def samples(text):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_a_run_is_scraped_with_its_clips_stages_queues_and_retries(tmp_path):
    def script(worker, task, tries):
        if task.stage is Stage.DENOISE and task.items == (0,) and tries == 1:
            return Fails(kind=FailureKind.OUT_OF_MEMORY)
        if task.stage is Stage.DENOISE and task.items == (1,):
            return Fails(kind=FailureKind.BAD_INPUT)
        return None

    address = f"127.0.0.1:{free_port()}"
    with metrics_server(address) as observer:
        executor = RenderingExecutor(script=script)
        out = to_location(tmp_path / "out")
        render_job(out, write_rows(tmp_path, ["a fox", "a dog", "a cat"]), executor=executor, observer=observer)
        found = samples(requests.get(f"http://{address}/metrics", timeout=30).text)
    assert found["ovi_ray_clips",] == 3
    assert found["ovi_ray_clips_ended_total", ("status", "done")] == 2
    assert found["ovi_ray_clips_ended_total", ("status", "failed")] == 1
    assert found["ovi_ray_stage_seconds_count", ("device", "cpu"), ("stage", "decode")] == 2
    assert found["ovi_ray_stage_seconds_sum", ("device", "cpu"), ("stage", "decode")] == 2.0
    assert found["ovi_ray_retries_total", ("reason", "out_of_memory"), ("stage", "denoise")] == 1
    assert found["ovi_ray_task_failures_total", ("reason", "bad_input"), ("stage", "denoise")] == 1
    assert ("ovi_ray_queue_depth", ("stage", "decode"), ("state", "ready")) in found
    memory = ("ovi_ray_device_memory_limit_bytes", ("device", "cpu"), ("node", "host"), ("worker", "w0"))
    assert found[memory] == 100e9
    assert found["ovi_ray_running",] == 0
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://{address}/metrics", timeout=30)


def test_clips_that_end_while_a_run_stops_are_counted():
    observer = MetricsObserver()
    observer.cycle(Cycle(now=1.0, events=(), actions=(Finish(clip=0, status=ClipStatus.DONE),), stopping=True))
    assert observer.registry.get_sample_value("ovi_ray_clips_ended_total", {"status": "done"}) == 1


def test_a_pause_is_a_metric():
    observer = MetricsObserver()
    both = Observers([RecordingObserver(), observer])
    both.paused("the disk is full")
    assert observer.registry.get_sample_value("ovi_ray_paused") == 1
    both.resumed()
    assert observer.registry.get_sample_value("ovi_ray_paused") == 0


def test_the_dashboard_shows_every_metric_and_no_other():
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    used = set(re.findall(r"\bovi_ray_\w+", json.dumps(dashboard)))
    kinds = {"histogram": ("_sum", "_count"), "counter": ("_total",), "gauge": ("",)}
    known = {family.name + end for family in MetricsObserver().registry.collect() for end in kinds[family.type]}
    assert used <= known
    bases = {name.removesuffix("_sum").removesuffix("_count") for name in used}
    shown_nowhere = {name for name in known if name.removesuffix("_sum").removesuffix("_count") not in bases}
    assert shown_nowhere == {"ovi_ray_running", "ovi_ray_device_memory_limit_bytes"}


@pytest.mark.parametrize("address", ["port", "99999", "-1", "", "no.such.host.invalid:9400"])
def test_an_address_that_cannot_be_used_is_told(address):
    with pytest.raises(InputError) as caught, metrics_server(address):
        pass
    (problem,) = caught.value.problems
    assert problem.field == "--metrics"


@pytest.mark.parametrize(
    ("address", "part", "moved"),
    [("9400", 0, "127.0.0.1:9400"), ("9400", 3, "127.0.0.1:9403"), ("[::]:9400", 1, "[::]:9401")],
)
def test_parts_of_a_job_do_not_meet_at_one_port(address, part, moved):
    assert address_of_part(address, part) == moved


def test_a_part_beyond_the_last_port_is_refused():
    with pytest.raises(InputError, match="shard 9"):
        address_of_part("65530", 9)


def test_a_port_that_is_taken_is_told():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        with pytest.raises(InputError, match="in use"), metrics_server(port):
            pass
