"""`ovi-ray retry`, and the messages of `ovi-ray render` about an output folder that it cannot use."""

from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.output.lock import output_lock


def call(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stderr


def test_retry_of_a_folder_without_a_job_names_the_missing_file(tmp_path):
    code, message = call("retry", tmp_path)
    assert code == 2
    assert "manifest.parquet" in message


def test_render_refuses_a_folder_that_is_in_use(tmp_path, tiny_dir):
    (tmp_path / "p.txt").write_text("a fox\n", encoding="utf-8")
    (tmp_path / "out").mkdir()
    with output_lock(tmp_path / "out"):
        code, message = call(
            "render", tmp_path / "p.txt", "--ckpt-dir", tiny_dir, "--out", tmp_path / "out", "--dtype", "float32"
        )
    assert code == 2
    assert "in use" in message
