import pytest

from ovi_ray.protocol.observer import JobObserver
from ovi_ray.rendering import RenderOptions
from ovi_ray.report.last_run import read_last_run
from ovi_ray.storage.paths import to_location
from tests.support.rendered_jobs import ALWAYS, RenderingExecutor, render_job, write_rows
from tests.support.waiting import wait_until

LIVE = RenderOptions(progress=ALWAYS, report=ALWAYS)


@pytest.fixture
def out(tmp_path):
    return to_location(tmp_path / "out")


class FirstReport(JobObserver):
    """Waits, when the run starts, for the report that is there before any worker is."""

    def __init__(self, out):
        self.out = out
        self.page = ""

    def started(self, run):
        self.page = wait_until(lambda: (self.out / "report.html").exists() and (self.out / "report.html").read_text())


def test_the_report_is_there_before_the_first_worker_and_says_that_the_job_runs(out, tmp_path):
    observer = FirstReport(out)
    render_job(out, write_rows(tmp_path, ["a fox", "a dog"]), observer=observer, options=LIVE)
    assert "data-running" in observer.page
    assert "data-running" not in (out / "report.html").read_text()
    assert read_last_run(out).summary.clips == 2
    assert not read_last_run(out).summary.is_running


def test_a_run_with_nothing_to_do_leaves_the_report_as_it_is(out, tmp_path):
    render_job(out, write_rows(tmp_path, ["a fox", "a dog"]), options=LIVE)
    before = (out / "report.html").read_bytes()
    render_job(out, write_rows(tmp_path, ["a fox", "a dog"]), options=LIVE)
    assert (out / "report.html").read_bytes() == before


def test_a_run_with_nothing_to_do_on_a_shorter_list_reports_on_that_list(out, tmp_path):
    rows = [{"text_prompt": "a fox", "seed": 1}, {"text_prompt": "a dog", "seed": 2}]
    render_job(out, write_rows(tmp_path, rows), options=LIVE)
    render_job(out, write_rows(tmp_path, rows[:1]), options=LIVE)
    assert "<dt>Superseded</dt>" in (out / "report.html").read_text()


def test_the_report_of_an_earlier_version_stays_where_nothing_is_to_be_done(out, tmp_path):
    render_job(out, write_rows(tmp_path, ["a fox"]), options=LIVE)
    (out / "last_run.json").unlink()
    (out / "report.html").write_bytes(b"from an earlier version")
    render_job(out, write_rows(tmp_path, ["a fox"]), options=LIVE)
    assert (out / "report.html").read_bytes() == b"from an earlier version"


def test_a_report_that_cannot_be_written_while_the_job_runs_is_told_once_and_fails_nothing(out, tmp_path):
    class InTheWay(RenderingExecutor):
        def decode(self, work):
            path = out.local_path / "report.html"
            if path.is_file():
                path.unlink()
                (path / "a folder").mkdir(parents=True)
            return super().decode(work)

    messages = []

    class Told(JobObserver):
        def message(self, text):
            messages.append(text)

    prompts = ["a fox", "a dog", "a cat", "a heron"]
    result = render_job(out, write_rows(tmp_path, prompts), executor=InTheWay(), observer=Told(), options=LIVE)
    assert result.done == 4
    told = [text for text in messages if "the report cannot be written" in text]
    assert 1 <= len(told) <= 2  # while it runs, and at the end
