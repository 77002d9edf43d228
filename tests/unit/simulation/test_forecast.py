"""Forecasts of a job: time, utilisation, cost and bottlenecks."""

import numpy as np
import pytest

from ovi.stages import Stage
from ovi_ray.errors import InputError
from ovi_ray.inputs.cluster_profile import parse_profile
from ovi_ray.scheduling.workload import ClipKind, Workload
from ovi_ray.simulation.forecast import forecast

KIND = ClipKind(model_name="720x720_5s", height=704, width=704, video_latent_length=31, sample_steps=50)


def devices(**changes):
    rates = {"encode_text": 200, "encode_first_frame": 120, "denoise": 325, "decode": 120} | changes.pop("tflops", {})
    facts = {
        "count": 2,
        "vendor": "nvidia",
        "memory_gb": 76,
        "tflops": rates,
        "load_gb_per_s": 3,
        "price_per_hour": 2.5,
    }
    return facts | changes


def cluster(**classes):
    return parse_profile({"name": "test", "devices": classes or {"gpu": devices()}})


def workload(clips=40):
    texts = np.stack([np.arange(clips), np.full(clips, clips), np.full(clips, clips + 1)], axis=1)
    return Workload(
        kinds=(KIND,), clip_kind=np.zeros(clips, np.int32), clip_texts=texts, text_tokens=np.full(clips + 2, 100)
    )


def test_the_time_is_close_above_the_bound_and_the_cost_follows_from_it():
    result = forecast(workload(), cluster())
    assert result.bound_s <= result.eta_s <= 1.05 * result.bound_s
    (gpu,) = result.classes
    assert gpu.device_hours == pytest.approx(2 * result.eta_s / 3600)
    assert result.cost == pytest.approx(gpu.device_hours * 2.5)
    assert result.clips_per_hour == pytest.approx(40 * 3600 / result.eta_s)
    assert (result.clips, result.texts, result.first_frames) == (40, 42, 0)


def test_the_shares_of_a_class_add_up_to_its_time():
    (gpu,) = forecast(workload(), cluster()).classes
    assert 0.9 < sum(gpu.busy.values()) + gpu.load <= 1.0
    assert gpu.busy[Stage.DENOISE] > gpu.busy[Stage.DECODE] > gpu.busy[Stage.ENCODE_TEXT] > 0


def test_without_a_price_there_is_no_cost():
    assert forecast(workload(4), cluster(gpu=devices(), old=devices(price_per_hour=None))).cost is None


def test_what_limits_the_job_is_named_first():
    slow_decode = cluster(
        denoiser=devices(stages=["encode_text", "denoise"]),
        decoder=devices(count=1, stages=["decode"], tflops={"decode": 5}),
    )
    worst = forecast(workload(), slow_decode).bottlenecks[:2]
    assert {bottleneck.what for bottleneck in worst} == {"decode on decoder", "devices of class decoder"}
    assert [bottleneck.sooner for bottleneck in worst] == pytest.approx([0.5, 0.5], abs=0.05)


def test_one_more_device_is_weighed_too():
    bottlenecks = forecast(workload(), cluster()).bottlenecks
    more = next(bottleneck for bottleneck in bottlenecks if bottleneck.change == "one more")
    assert more.what == "devices of class gpu"
    assert more.sooner == pytest.approx(1 / 3, abs=0.03)


def test_a_stage_that_fits_nowhere_is_reported_before_anything_starts():
    with pytest.raises(InputError, match="denoise of 720x720_5s"):
        forecast(workload(4), cluster(small=devices(memory_gb=14)))


def test_tasks_are_kept_for_a_picture_only_when_asked_for():
    assert forecast(workload(4), cluster()).spans == ()
    spans = forecast(workload(4), cluster(), keep_spans=True).spans
    assert sum(span.task.stage is Stage.DECODE for span in spans) == 4
