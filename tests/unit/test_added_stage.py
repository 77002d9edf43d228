"""A stage that is added to the table, and nowhere else, is known to costs, profiles, bound, records and reports."""

import json
import subprocess
import sys

import pytest

STAGE = "proofread"


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    command = [sys.executable, "-m", "tests.support.added_stage", str(folder)]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_devices_have_a_rate_for_it_and_count_its_memory(seen):
    assert seen["rate"] == 25.0
    assert seen["rate_of_worker"] > 0
    assert seen["memory_gb"] == pytest.approx(3.0)


def test_cluster_profiles_can_declare_it(seen):
    assert seen["profile_schema"].count(STAGE) == 2


def test_it_is_scheduled_and_counted_in_the_bound(seen):
    assert seen["busy_s"] > 0
    assert STAGE in seen["bound"]
    assert 0 < seen["bound_s"] <= seen["makespan_s"]


def test_records_and_reports_count_its_time(seen):
    assert [status for status, _ in seen["rows"]] == ["done", "done"]
    assert [seconds for _, seconds in seen["rows"]] == [
        pytest.approx(2 / 4)
    ] * 2  # a share of two batches of four texts
    assert seen["worker_s"] == 2.0
    assert seen["progress"][STAGE] == 4


def test_the_history_of_a_clip_shows_it(seen):
    assert sorted(seen["history"]) == ["decode", "denoise", "encode_text", STAGE]


def test_its_output_is_passed_on(seen):
    assert seen["inputs_of_denoise"].count("proof") == 2 * 3
