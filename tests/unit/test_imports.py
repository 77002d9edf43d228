"""Imports that cost seconds happen only where they are needed. Which package may import which is held by `make lint`."""

import subprocess
import sys


def loaded_by(module: str, *heavy: str) -> str:
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_a_worker_starts_without_the_libraries_that_only_text_encoding_and_qint8_need():
    assert loaded_by("ovi_ray.workers.actor, ovi_ray.rendering", "transformers", "optimum.quanto") == ""


def test_help_is_quick_because_the_command_line_loads_no_model_code():
    assert loaded_by("ovi_ray.cli", "ray", "torch", "transformers") == ""


def test_planning_and_reports_load_neither_torch_nor_ray():
    assert loaded_by("ovi_ray.inputs.task_table, ovi_ray.simulation.forecast", "ray", "torch") == ""
    assert loaded_by("ovi_ray.output.recovery, ovi_ray.report.html", "ray", "torch") == ""
