"""`ovi-ray retry`, and what `ovi-ray render` says of an output folder that it cannot use."""

import pytest
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.output.lock import output_lock
from ovi_ray.runtime import ray_executor


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stderr, result.stdout


@pytest.fixture
def nothing_starts(monkeypatch):
    def reached(*args, **kwargs):
        raise AssertionError("the job was started")

    monkeypatch.setattr(ray_executor, "ray_session", reached)


def test_retry_has_help_with_an_example():
    code, _, text = call("retry", "--help")
    assert code == 0
    assert "ovi-ray retry out" in text


@pytest.mark.usefixtures("nothing_starts")
def test_retry_of_a_folder_that_is_none_names_what_is_missing(tmp_path):
    code, message, _ = call("retry", tmp_path)
    assert code == 2
    assert "manifest.parquet" in message


@pytest.mark.usefixtures("nothing_starts")
def test_render_refuses_a_folder_that_is_in_use(tmp_path, tiny_dir):
    (tmp_path / "p.txt").write_text("a fox\n", encoding="utf-8")
    (tmp_path / "out").mkdir()
    with output_lock(tmp_path / "out"):
        code, message, _ = call(
            "render", tmp_path / "p.txt", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--dtype", "float32"
        )
    assert code == 2
    assert "in use" in message
