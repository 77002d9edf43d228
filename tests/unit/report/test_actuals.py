"""Actual times of a job, from its results."""

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pytest

from ovi_ray.errors import InputError
from ovi_ray.output.result_row import RESULTS_SCHEMA
from ovi_ray.report.actuals import actuals_of, read_actuals

START = datetime(2026, 3, 1, tzinfo=UTC)


def results(*rows):
    return pa.Table.from_pylist(list(rows), schema=RESULTS_SCHEMA)


def row(*, ended_s=100.0, status="done", encode_s=1.0, denoise_s=60.0, decode_s=9.0):
    return {
        "status": status,
        "finished_at": START + timedelta(seconds=ended_s),
        "encode_s": encode_s,
        "denoise_s": denoise_s,
        "decode_s": decode_s,
    }


def test_wall_time_runs_from_the_first_start_to_the_last_end():
    actuals = actuals_of(results(row(ended_s=70.0), row(ended_s=170.0, encode_s=None)))
    assert actuals.seconds == 170.0
    assert actuals.clips_per_hour == 2 * 3600 / 170


def test_only_finished_clips_count_towards_the_times():
    actuals = actuals_of(results(row(), row(denoise_s=80.0), row(status="failed", ended_s=9999.0, denoise_s=None)))
    assert (actuals.clips, actuals.failed) == (2, 1)
    assert actuals.stage_s == {"encode": 1.0, "denoise": 70.0, "decode": 9.0}
    assert actuals.seconds < 200


def test_a_job_without_finished_clips_has_no_time():
    actuals = actuals_of(results(row(status="failed")))
    assert (actuals.seconds, actuals.clips_per_hour) == (0.0, 0.0)


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(InputError) as raised:
        read_actuals(tmp_path)
    (problem,) = raised.value.problems
    assert problem.file == str(tmp_path)
