"""The record of runs as a file: everything comes back as it was, and what a killed run leaves is tolerated."""

import json

import numpy as np
import pyarrow as pa
import pytest

from ovi.config import Component
from ovi.stages import DataKind, Stage
from ovi_ray.errors import InputError
from ovi_ray.output.event_log import (
    EndEntry,
    IdleEntry,
    MessageEntry,
    RunIdentity,
    WorkerEntry,
    cycle_line,
    entry_line,
    header_line,
    recorded_runs,
)
from ovi_ray.protocol.observer import Cycle
from ovi_ray.scheduling.actions import Cancel, Drop, Finish, RunTask, WakeAt
from ovi_ray.scheduling.config import SchedulerConfig
from ovi_ray.scheduling.device_profile import ComponentSizes, DeviceProfile, StageRates
from ovi_ray.scheduling.events import DataLost, TaskDone, TaskFailed, Tick, WorkerJoined, WorkerLost
from ovi_ray.scheduling.task import (
    BreakerChange,
    BreakerReason,
    BreakerState,
    ClipStatus,
    DataKey,
    FailureKind,
    Reason,
    Task,
)
from tests.support.scheduling import IMAGE, SMALL, make_workload

IDENTITY = RunIdentity(version="1.0", started_at="2030-01-01T00:00:00+00:00", host="h", pid=7, command="ovi-ray render")
CONFIG = SchedulerConfig(max_latents=5, patience_s=60.0)
WORKLOAD = make_workload(clips=3, kinds=(SMALL, IMAGE), with_latents=(2,))
IDS = ["aaa", "abb", "ccc"]
PROFILE = DeviceProfile(
    name="card",
    memory_gb=22.5,
    stages=frozenset({Stage.DENOISE, Stage.DECODE}),
    sizes=ComponentSizes(transformer=11.7),
    rates=StageRates(denoise=1 / 3),
)
DENOISE = Task(stage=Stage.DENOISE, items=(1,), attempt=2)
TEXTS = Task(stage=Stage.ENCODE_TEXT, items=(0, 3, 4))
CYCLE = Cycle(
    now=0.1 + 0.2,
    events=(
        WorkerJoined(worker="w0.1", slot="w0", device=PROFILE, resident=frozenset(Component), model_name="m"),
        WorkerLost(worker="w0", crashed=False),
        TaskDone(worker="w1", task=TEXTS, seconds=2 / 3, load_seconds=0.1),
        TaskFailed(worker="w1", task=DENOISE, kind=FailureKind.OUT_OF_MEMORY, message="no \ud800 memory", items=(1,)),
        DataLost(key=DataKey(kind=DataKind.FIRST_FRAME, number=0)),
        Tick(),
    ),
    actions=(
        RunTask(
            worker="w1",
            task=DENOISE,
            components=frozenset({Component.TRANSFORMER}),
            model_name="m",
            reason=Reason.BEST_USE,
        ),
        Cancel(worker="w1", task=DENOISE, reason=Reason.SUPERSEDED),
        Drop(key=DataKey(kind=DataKind.LATENTS, number=2)),
        Finish(clip=2, status=ClipStatus.FAILED, error="it broke"),
        WakeAt(time=1e9 / 7),
        BreakerChange(worker="w1", state=BreakerState.OPEN, reason=BreakerReason.REFUTED, last_failure="it broke"),
    ),
    stopping=True,
)
OTHERS = (
    WorkerEntry(worker="w1", slot="w1", node="n", pid=3, device="cpu", vendor="cpu"),
    IdleEntry(at_s=1.0, reasons={"w1": "nothing", "w2": None}),
    MessageEntry(at_s=2.0, text="päused"),
    EndEntry(at_s=3.0, done=1, failed=1, error=""),
)


def header(identity=IDENTITY):
    return header_line(identity, config=CONFIG, workload=WORKLOAD, clip_ids=pa.array(IDS))


def write(tmp_path, *lines):
    path = tmp_path / "events.jsonl"
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_everything_comes_back_as_it_was(tmp_path):
    path = write(tmp_path, header(), cycle_line(CYCLE, IDS), *map(entry_line, OTHERS))
    (run,) = recorded_runs(path)
    assert (run.identity, run.config, run.clip_ids) == (IDENTITY, CONFIG, IDS)
    assert run.workload.kinds == WORKLOAD.kinds
    for name in (
        "clip_kind",
        "clip_texts",
        "text_tokens",
        "clip_first_frame",
        "first_frame_kind",
        "clips_with_latents",
    ):
        assert np.array_equal(getattr(run.workload, name), getattr(WORKLOAD, name))
    assert list(run.entries()) == [CYCLE, *OTHERS]


def test_events_and_actions_of_a_clip_carry_its_id(tmp_path):
    content = json.loads(cycle_line(CYCLE, IDS))
    ids = [fields.get("clip_id") for fields in (*content["events"], *content["actions"])]
    assert ids == [None, None, None, "abb", None, None, "abb", "abb", None, "ccc", None, None]


def test_runs_are_appended_and_numbered(tmp_path):
    later = RunIdentity(version="1.1", started_at="2031", host="h", pid=8, command="ovi-ray render")
    path = write(tmp_path, header(), entry_line(OTHERS[2]), header(later), entry_line(OTHERS[3]))
    first, second = recorded_runs(path)
    assert (first.number, first.identity, list(first.entries())) == (1, IDENTITY, [OTHERS[2]])
    assert (second.number, second.identity, list(second.entries())) == (2, later, [OTHERS[3]])


@pytest.mark.parametrize("chars", [1, 20, 200])
def test_a_last_line_that_was_cut_off_is_left_out(tmp_path, chars):
    path = write(tmp_path, header(), entry_line(OTHERS[2]), cycle_line(CYCLE, IDS)[:chars])
    (run,) = recorded_runs(path)
    assert list(run.entries()) == [OTHERS[2]]


def test_a_line_that_was_cut_off_before_the_next_run_is_left_out(tmp_path):
    path = write(tmp_path, header(), entry_line(OTHERS[2]), cycle_line(CYCLE, IDS)[:50], "\n", header())
    first, second = recorded_runs(path)
    assert list(first.entries()) == [OTHERS[2]]
    assert not list(second.entries())


@pytest.mark.parametrize(
    "line", ["not json\n", '{"t": 1, "events": [{"type": "Unknown"}]}\n', '{"events": []}\n', "[]\n"]
)
def test_a_broken_line_in_the_middle_is_refused_with_its_number(tmp_path, line):
    path = write(tmp_path, header(), line, entry_line(OTHERS[2]))
    (run,) = recorded_runs(path)
    with pytest.raises(InputError) as error:
        list(run.entries())
    (problem,) = error.value.problems
    assert (problem.file, problem.line) == (str(path), 2)


def test_a_value_that_no_longer_exists_is_refused_with_its_field(tmp_path):
    path = write(tmp_path, header(), cycle_line(CYCLE, IDS).replace('"denoise"', '"dream"'), entry_line(OTHERS[2]))
    with pytest.raises(InputError) as error:
        list(recorded_runs(path)[0].entries())
    assert "stage" in error.value.problems[0].expected


@pytest.mark.parametrize("content", ["", "anything\n"])
def test_a_file_without_a_run_is_refused(tmp_path, content):
    with pytest.raises(InputError) as error:
        recorded_runs(write(tmp_path, content), name="s3://bucket/events.jsonl")
    assert error.value.problems[0].file == "s3://bucket/events.jsonl"


@pytest.mark.parametrize(
    ("old", "new", "field"), [('"format":1', '"format":9', "format"), ('"clip_ids":"', '"clip_ids":"?', None)]
)
def test_a_header_that_is_newer_or_broken_is_refused(tmp_path, old, new, field):
    (run,) = recorded_runs(write(tmp_path, header().replace(old, new)))
    with pytest.raises(InputError) as error:
        _ = run.clip_ids
    assert (error.value.problems[0].line, error.value.problems[0].field) == (1, field)
