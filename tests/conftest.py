"""Fixtures that more than one test file uses, and the lanes. The golden data is what the published implementation gives, in
float32 on CPU."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.support import lanes, ray_start
from tests.support.s3 import S3Server, running_s3

if TYPE_CHECKING:  # the tests that need no torch do not wait for its import
    import torch

TINY = Path(__file__).parent / "data" / "tiny"

# Threads of torch: the test models are small, and threads that wait for each other cost more than they save.
os.environ.setdefault("OMP_NUM_THREADS", "1")
for name, value in ray_start.ENVIRONMENT.items():
    os.environ.setdefault(name, value)
if not any(Path(driver).exists() for driver in ("/dev/nvidiactl", "/dev/kfd")):
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read once, when Triton is imported


@pytest.fixture(scope="session")
def golden() -> "dict[str, torch.Tensor]":
    from safetensors.torch import load_file

    return load_file(TINY / "golden.safetensors")


@pytest.fixture(scope="session")
def golden_json() -> dict[str, Any]:
    return json.loads((TINY / "golden.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def tiny_dir() -> Path:
    """A small checkpoint in the published folder layout."""
    return TINY / "ckpts"


@pytest.fixture(scope="session")
def first_frame_path() -> Path:
    return TINY / "first_frame.png"


@pytest.fixture(scope="session")
def assert_close_to_std() -> "Callable[..., None]":
    """The project's measure of parity: the largest error, relative to the expected tensor's standard deviation."""

    def check(actual: "torch.Tensor", expected: "torch.Tensor", tolerance: float = 1e-4) -> None:
        assert actual.shape == expected.shape
        error = (actual.double() - expected.double()).abs().max() / expected.double().std()
        assert error <= tolerance, f"largest error {error:.2e} of the standard deviation, allowed {tolerance:.0e}"

    return check


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server on loopback. Until the session ends, the environment points to it, also that of new processes."""
    with running_s3(tmp_path_factory.mktemp("s3")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3_bucket(request: pytest.FixtureRequest) -> str:
    """The URI of an empty bucket, such as s3://bucket-1."""
    lanes.check_s3_marker(request.node)
    server: S3Server = request.getfixturevalue("s3_server")
    return server.new_bucket()


def pytest_itemcollected(item: pytest.Item) -> None:
    """Mark what uses the S3 server, before markers select tests."""
    lanes.mark_s3(item)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check the markers, leave the GPU tests out where there is no GPU, and begin with what takes longest."""
    lanes.check_folders(items)
    lanes.give_time(items)
    left_out = lanes.without_gpu(items)
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        config.stash[lanes.LEFT_OUT] = len(left_out)
    items[:] = lanes.order([item for item in items if item not in left_out])


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Refuse Ray to the tests that are not marked `ray`, before their fixtures start."""
    lanes.allow_only_what_is_marked(item)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say which tests a GPU would have run."""
    if left_out := config.stash.get(lanes.LEFT_OUT, 0):
        terminalreporter.write_line(f"there is no GPU here: {left_out} tests marked gpu were not run")
