"""The history of a run in lines of text."""

from ovi.stages import Stage
from ovi_ray.report.history_text import clip_lines
from ovi_ray.report.run_history import ClipHistory, TaskOutcome, TaskSpan
from ovi_ray.scheduling.task import ClipStatus, Reason


def span(stage, started_s, ended_s, *, items=(0,)):
    return TaskSpan(
        assists=False,
        worker="w0",
        node="host",
        device="cpu",
        stage=stage,
        items=items,
        clip_id="" if stage is Stage.ENCODE_TEXT else "c0ffee",
        attempt=1,
        reason=Reason.ONLY_WORK,
        started_s=started_s,
        ended_s=ended_s,
        outcome=TaskOutcome.DONE,
    )


def lines_of(*tasks):
    history = ClipHistory(clip_id="c0ffee", run=1, tasks=tasks, status=ClipStatus.DONE, error="", ended_s=99.0)
    return [line.split("  ", 1)[-1] for line in clip_lines(history)]


def test_the_time_between_the_inputs_and_the_denoise_is_told_as_a_wait():
    lines = lines_of(
        span(Stage.ENCODE_TEXT, 0.0, 2.0, items=(0, 1)), span(Stage.DENOISE, 6.5, 7.0), span(Stage.DECODE, 7.0, 8.0)
    )
    assert [line.split()[0] for line in lines[1:]] == ["encode_text", "waits", "denoise", "decode", "done"]
    assert lines[2] == "waits 4.5 s for a worker"


def test_a_wait_is_counted_from_the_last_input_that_was_encoded():
    lines = lines_of(
        span(Stage.ENCODE_TEXT, 0.0, 5.0, items=(0, 1)),
        span(Stage.ENCODE_FIRST_FRAME, 1.0, 2.0),
        span(Stage.DENOISE, 6.0, 7.0),
    )
    assert "waits 1.0 s for a worker" in lines
