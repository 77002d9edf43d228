"""Logging to the terminal and to a run's log file."""

import io
import logging
import sys

import pytest

from ovi_ray import logs
from ovi_ray.cli.console import message_console
from ovi_ray.logs import JOB, MESSAGES, configure_logging, run_log
from ovi_ray.printing import Console

logger = logging.getLogger("ovi_ray.test")


@pytest.fixture(autouse=True)
def restored_logging():
    root = logging.getLogger("ovi_ray")
    level, handlers = root.level, list(root.handlers)
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


def make_console():
    return Console(file=io.StringIO(), width=200)


def test_the_console_shows_records_of_its_level_and_above():
    console = make_console()
    configure_logging(logging.WARNING, console)
    logger.info("quiet")
    logger.warning("loud")
    assert console.file.getvalue().splitlines() == ["WARNING ovi_ray.test: loud"]


def test_a_message_that_the_user_sees_anyway_is_not_shown_twice():
    console = make_console()
    configure_logging(logging.DEBUG, console)
    logging.getLogger(MESSAGES).info("paused")
    assert console.file.getvalue() == ""


def test_what_the_display_shows_of_a_job_is_logged_to_the_console_only_when_asked():
    for level, shown in ((logging.WARNING, False), (logging.INFO, True)):
        console = make_console()
        configure_logging(level, console)
        logging.getLogger(JOB).error("run ended")
        assert ("run ended" in console.file.getvalue()) == shown


def test_configuring_again_replaces_the_earlier_handler():
    first, second = make_console(), make_console()
    configure_logging(logging.INFO, first)
    configure_logging(logging.INFO, second)
    logger.info("once")
    assert (first.file.getvalue(), "once" in second.file.getvalue()) == ("", True)


def test_the_log_of_a_run_has_everything_from_info_on_and_earlier_runs_stay(tmp_path):
    console = make_console()
    configure_logging(logging.WARNING, console)
    for text in ("first run", "second run"):
        with run_log(tmp_path, pytest.fail):
            logger.debug("detail")
            logger.info(text)
    logger.warning("after the runs")
    lines = (tmp_path / "run.log").read_text(encoding="utf-8").splitlines()
    assert [line.partition(" INFO ")[2] for line in lines] == ["first run", "second run"]
    assert "run" not in console.file.getvalue().replace("after the runs", "")


def test_a_log_that_cannot_be_written_is_reported_once(tmp_path):
    (tmp_path / logs.RUN_LOG).symlink_to("/dev/full")
    problems = []
    with run_log(tmp_path, problems.append):
        logger.info("one")
        logger.info("two")
    assert len(problems) == 1


def test_records_of_a_console_whose_stream_was_closed_change_nothing(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    configure_logging(logging.WARNING, message_console())
    stream.close()
    logging.getLogger("ovi_ray.anything").warning("nobody reads this")
