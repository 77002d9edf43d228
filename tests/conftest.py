"""Fixtures that more than one test file uses. The golden data is what the published implementation gives, in float32 on CPU."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.s3 import S3Server, running_s3

torch.set_num_threads(1)  # the test models are small: threads that wait for each other cost more than they save
TINY = Path(__file__).parent / "data" / "tiny"


@pytest.fixture(scope="session")
def golden() -> dict[str, torch.Tensor]:
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
def assert_close_to_std() -> Callable[..., None]:
    """The project's measure of parity: the largest error, relative to the expected tensor's standard deviation."""

    def check(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
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
def s3_bucket(s3_server: S3Server) -> str:
    """The URI of an empty bucket, such as s3://bucket-1."""
    return s3_server.new_bucket()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where a GPU is, and are deselected (not skipped silently one by one) elsewhere."""
    if torch.cuda.is_available():
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if gpu:
        config.hook.pytest_deselected(items=gpu)
        items[:] = [item for item in items if not item.get_closest_marker("gpu")]
