"""Jobs to damage, and a cluster to run them on."""

import contextlib

import pytest

from tests.chaos.harness import ChaosJob
from tests.chaos.nodes import Nodes


@pytest.fixture(scope="module")
def nodes():
    with contextlib.closing(Nodes(2)) as nodes:
        yield nodes


@pytest.fixture
def make_job(tmp_path):
    """Makes jobs in one folder; their processes end with the test."""
    with contextlib.ExitStack() as ends:

        def make(**options):
            job = ChaosJob(folder=tmp_path, **options)
            ends.callback(job.close)
            return job

        yield make
