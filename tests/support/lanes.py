"""Keeps the markers true, so that a lane (folders and a marker expression, see the Makefile) starts only what it should.

ray    starts Ray, in this process or in one that it starts; refused without the marker
s3     starts the S3 server of `tests.support.s3`; set for every test that uses its fixture
slow   takes over ten seconds on an idle machine
gpu    needs a GPU; only in tests/gpu, and left out where there is none
cluster  needs a real Slurm, Ray with its dashboard, or to install packages; only in tests/cluster
browser  drives a real Chromium; only in tests/browser
"""

import os
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from tests.support.ray_start import be_patient
from tests.support.waiting import PATIENCE_S

RUNTIME_ENV_HOOK = "RAY_RUNTIME_ENV_HOOK"  # every ray.init calls it, also in processes that inherit the environment
S3_FIXTURES = {"s3_server", "s3_bucket"}
LONGEST_FIRST = (
    "tests/cluster/test_slurm.py",
    "tests/cluster/test_hosts.py",
    "tests/chaos/",
    "tests/e2e/",
    "tests/unit/runtime/",
    "",
)
OWN_FOLDER = ("gpu", "cluster", "browser")
"""Markers of tests that need something special."""
LEFT_OUT = pytest.StashKey[int]()
"""Tests marked `gpu` that were left out."""
TIMEOUT_S = 2 * PATIENCE_S
"""For one test that starts processes; what it waits for has deadlines of its own."""


def refuse_ray(runtime_env: Any) -> Any:
    """Ray's hook in the tests without the marker `ray`."""
    pytest.fail("this test starts Ray: mark it `ray`")


def allow_only_what_is_marked(item: pytest.Item) -> None:
    """Refuse Ray to a test that is not marked so, and to every process that it starts."""
    hook = be_patient if item.get_closest_marker("ray") else refuse_ray
    os.environ[RUNTIME_ENV_HOOK] = f"{hook.__module__}.{hook.__name__}"


def mark_s3(item: pytest.Item) -> None:
    """Mark a test that uses the S3 server, directly or through another fixture."""
    if S3_FIXTURES & set(getattr(item, "fixturenames", ())):
        item.add_marker("s3")


def check_s3_marker(item: pytest.Item) -> None:
    """Fail a test without the marker that asks for the S3 server while it runs, by `getfixturevalue`."""
    if not item.get_closest_marker("s3"):
        pytest.fail("this test uses the S3 server: mark it `s3`")


def check_folders(items: Iterable[pytest.Item]) -> None:
    """Raises UsageError for tests with a marker of `OWN_FOLDER` outside of the folder of that name, and for others in it."""
    for item in items:
        for name in OWN_FOLDER:
            if item.nodeid.startswith(f"tests/{name}/") != bool(item.get_closest_marker(name)):
                raise pytest.UsageError(f"{item.nodeid}: tests marked `{name}` lie in tests/{name}, and no others")


def without_gpu(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The tests marked `gpu`, where there is no GPU; torch is asked only if there are any."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return []
    import torch

    return [] if torch.cuda.is_available() else marked


def order(items: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The files that take longest first, so that processes which share the files end together."""

    def rank(item: pytest.Item) -> int:
        return next(place for place, folder in enumerate(LONGEST_FIRST) if item.nodeid.startswith(folder))

    return sorted(items, key=rank)


def give_time(items: Iterable[pytest.Item]) -> None:
    """Raise the time limit of tests that start processes: a loaded machine takes many times as long for these."""
    for item in items:
        if any(item.get_closest_marker(name) for name in ("ray", "s3", "slow")):
            item.add_marker(pytest.mark.timeout(TIMEOUT_S))
