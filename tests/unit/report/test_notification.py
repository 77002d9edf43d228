import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ovi_ray.errors import InputError, JobStopped, WorkersLost
from ovi_ray.protocol.observer import RunEnded
from ovi_ray.report.notification import Notifier, NotifyConfig
from tests.support.waiting import wait_until

QUICK = NotifyConfig(tries=3, pause_s=0.0)


@contextmanager
def receiver(*statuses):
    """A server that answers with each status once, and 200 after that; yields its URL and what it received."""
    received, left = [], list(statuses)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            received.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(left.pop(0) if left else 200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hooks/secret", received
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def notifier(url, messages=None, config=QUICK):
    told = messages if messages is not None else []
    return Notifier(url, job="foxes", output_dir="s3://bucket/out", message=told.append, config=config)


def test_a_job_that_ends_says_what_became_of_it():
    with receiver() as (url, received), notifier(url) as job:
        job.ended(RunEnded(now=60.0, done=3, failed=0))
    (posted,) = received
    assert (posted["event"], posted["job"], posted["output_dir"]) == ("finished", "foxes", "s3://bucket/out")
    assert (posted["done"], posted["failed"], posted["seconds"]) == (3, 0, 60.0)
    assert posted["text"] == "foxes is finished: 3 rendered, 0 failed"


def test_a_pause_is_posted_when_it_begins_and_when_it_ends():
    with receiver() as (url, received), notifier(url) as job:
        job.paused("/mnt/out: no space left")
        wait_until(lambda: received)  # while the job waits
        job.resumed()
        job.ended(RunEnded(now=60.0, done=2, failed=1))
    assert [posted["event"] for posted in received] == ["paused", "resumed", "failed"]
    assert received[0]["reason"] == "/mnt/out: no space left"


@pytest.mark.parametrize(
    ("error", "event"),
    [
        (WorkersLost("no worker is left"), "failed"),
        (JobStopped("stopped (SIGTERM)"), "stopped"),
        (KeyboardInterrupt(), "stopped"),
    ],
)
def test_a_run_that_ends_early_says_why(error, event):
    with receiver() as (url, received), pytest.raises(type(error)), notifier(url):
        raise error
    (posted,) = received
    assert (posted["event"], posted["reason"]) == (event, str(error) or "KeyboardInterrupt")


def test_a_receiver_that_fails_is_tried_again():
    messages = []
    with receiver(503, 500) as (url, received), notifier(url, messages) as job:
        job.ended(RunEnded(now=1.0, done=1, failed=0))
    assert len(received) == 3
    assert messages == []


def test_a_receiver_that_cannot_be_reached_is_told_once_without_the_secret():
    with receiver() as (url, _):
        pass
    messages = []
    with notifier(url, messages) as job:
        job.paused("away")
        job.ended(RunEnded(now=1.0, done=1, failed=0))
    (message,) = messages
    assert "127.0.0.1" in message
    assert "secret" not in message


@pytest.mark.parametrize("url", ["", "example.com/hook", "ftp://example.com", "https://", "file:///etc/passwd"])
def test_what_is_no_url_is_refused(url):
    with pytest.raises(InputError) as caught:
        notifier(url)
    assert caught.value.problems[0].field == "--notify"
