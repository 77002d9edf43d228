"""The stage table is consistent: every input is produced by an earlier stage, and orders are distinct."""

import pytest

from ovi.stages import CLIP_STAGES, INPUT_STAGES, STAGES, DataKind, Stage, WorkItem, stages_of


def test_every_stage_is_declared():
    assert set(STAGES) == set(Stage)


@pytest.mark.parametrize("stage", Stage)
def test_the_inputs_of_a_stage_are_produced_by_earlier_stages(stage):
    spec = STAGES[stage]
    earlier = {other.output for other in STAGES.values() if other.order < spec.order}
    assert set(spec.inputs) <= earlier


def test_orders_are_distinct_and_the_table_is_in_that_order():
    orders = [spec.order for spec in STAGES.values()]
    assert orders == sorted(set(orders))


def test_each_kind_of_data_has_one_producer_and_one_stage_makes_the_video():
    outputs = [spec.output for spec in STAGES.values()]
    assert sorted(outputs, key=str) == sorted([*DataKind, None], key=str)


def test_stages_split_into_those_of_clips_and_those_of_their_inputs():
    assert {*CLIP_STAGES, *INPUT_STAGES} == set(Stage)
    assert all(STAGES[stage].item is WorkItem.CLIP for stage in CLIP_STAGES)


def test_a_clip_without_an_image_skips_the_stages_for_images():
    assert set(Stage) - set(stages_of(has_image=False)) == {Stage.ENCODE_FIRST_FRAME}
    assert set(stages_of(has_image=True)) == set(Stage)


@pytest.mark.parametrize("stage", Stage)
def test_the_component_that_does_most_of_the_work_is_one_that_must_be_resident(stage):
    assert STAGES[stage].main_component in STAGES[stage].components


def test_the_seconds_of_each_stage_of_a_clip_are_counted_apart():
    groups = [STAGES[stage].time_group for stage in CLIP_STAGES]
    assert len(set(groups)) == len(groups)
    assert not set(groups) & {STAGES[stage].time_group for stage in INPUT_STAGES}
