"""The layers of the house: `ovi` never imports ray, and pure files import neither ray nor torch."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PURE_OVI = ["ovi", "ovi.config", "ovi.errors", "ovi.geometry", "ovi.hub", "ovi.layout", "ovi.prompts"]
IMPURE_OVI_RAY = {
    "adopt": "reads videos",
    "cluster": "is the edge to Ray",
    "devices": "asks torch",
    "device_checks": "asks torch",
    "digests": "reads checkpoints",
    "doctor": "asks torch",
    "driver": "drives the executor",
    "executor": "is the edge to Ray",
    "latents": "reads and writes tensors",
    "preflight": "checks checkpoints",
    "render": "starts Ray",
    "retry": "checks checkpoints",
    "transport": "packs tensors",
    "worker": "is the Ray actor",
}


def modules_of(package: str) -> list[str]:
    files = (ROOT / package).rglob("*.py")
    names = [file.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".") for file in files]
    return sorted(name.removesuffix(".__init__") for name in names)


def loaded_by(module: str, *heavy: str) -> str:
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_ovi_never_imports_ray():
    everything = ", ".join(modules_of("ovi"))
    code = f"import sys, {everything}; sys.exit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("package", ["ovi", "ovi_ray"])
def test_pure_files_import_neither_ray_nor_torch(package):
    pure = (
        PURE_OVI
        if package == "ovi"
        else [name for name in modules_of("ovi_ray") if name.removeprefix("ovi_ray.") not in IMPURE_OVI_RAY]
    )
    assert len(pure) >= 5
    assert loaded_by(", ".join(pure), "ray", "torch") == ""


def test_a_worker_starts_without_the_libraries_that_only_text_encoding_and_qint8_need():
    assert loaded_by("ovi_ray.worker, ovi_ray.render", "transformers", "optimum.quanto") == ""


def test_help_is_quick_because_the_command_line_loads_no_model_code():
    assert loaded_by("ovi_ray.cli", "ray", "torch", "transformers") == ""
