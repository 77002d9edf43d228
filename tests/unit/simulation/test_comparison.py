"""The worth of placement and helpers, compared with a queue of whole clips."""

import dataclasses

import numpy as np
import pytest

from ovi.stages import Stage
from ovi_ray.simulation.comparison import compare, first_clips
from ovi_ray.simulation.virtual_cluster import VirtualDevice, simulate
from tests.support.scheduling import BIG, ENCODER, IMAGE, MIDDLE, SLOW, SMALL, SMALL_CARD, make_workload


def devices(*profiles):
    return [VirtualDevice(name=f"{p.name}-{i}", profile=p) for i, p in enumerate(profiles)]


def compared(clips, *profiles):
    job, here = make_workload(clips), devices(*profiles)
    return compare(job, here, simulate(job, here).makespan_s)


def test_equal_devices_gain_next_to_nothing_from_placement():
    found = compared(64, *[BIG] * 4)
    assert found.placement_saves == pytest.approx(0, abs=0.02)
    assert (found.helpers, found.helpers_save) == ((), None)


def test_devices_of_different_speeds_gain_a_lot():
    assert compared(20, BIG, BIG, SLOW, SLOW).placement_saves > 0.15


def test_helpers_are_worth_the_time_that_they_save():
    found = compared(32, BIG, *[SMALL_CARD] * 4)
    assert found.helpers == ("12gb",)
    assert found.without_helpers_s == pytest.approx(simulate(make_workload(32), devices(BIG)).makespan_s)
    assert 0.02 < found.helpers_save < 0.2


def test_without_a_device_that_denoises_and_decodes_there_is_no_queue_to_compare_with():
    denoiser = dataclasses.replace(BIG, name="denoiser", stages=frozenset(Stage) - {Stage.DECODE})
    decoder = dataclasses.replace(BIG, name="decoder", stages=frozenset({Stage.DECODE}))
    found = compared(4, denoiser, decoder)
    assert (found.whole_clips_s, found.placement_saves) == (None, None)
    assert (found.helpers, found.without_helpers_s) == (("decoder",), None)


def test_a_queue_of_whole_clips_takes_its_texts_from_the_host_that_can_encode_them():
    no_text = dataclasses.replace(MIDDLE, stages=frozenset(Stage) - {Stage.ENCODE_TEXT})
    found = compared(8, no_text, no_text, ENCODER)
    assert found.whole_clips_s >= 0.98 * found.placed_s
    assert (found.helpers, found.without_helpers_s) == (("encoder",), None)


def test_an_empty_job_is_no_comparison():
    found = compared(0, BIG, SMALL_CARD)
    assert (found.placement_saves, found.helpers_save) == (None, None)


def test_the_first_clips_of_a_job_keep_what_they_need():
    job = make_workload(9, kinds=(SMALL, IMAGE), with_latents=(0, 7))
    part = first_clips(job, 4)
    assert part.clips == 4
    assert part.texts == len(np.unique(job.clip_texts[:4]))
    assert part.frames_of_clips.tolist() == [-1, 0, -1, 1]
    assert part.first_frame_kind.tolist() == [1, 1]
    assert part.clips_with_latents.tolist() == [0]
    assert part.text_tokens[part.clip_texts].tolist() == job.text_tokens[job.clip_texts[:4]].tolist()
    assert simulate(part, devices(BIG)).done == 4
