"""Requirements that a node shares with the driver."""

import shutil
from dataclasses import replace

import pytest

from ovi.weights.formats import WeightFormat
from ovi_ray.errors import NodeUnfit
from ovi_ray.weights.digests import sampled_digest
from ovi_ray.workers.requirements import check_device, check_versions, check_weights, requirements_here

MODEL = "720x720_5s"
TRANSFORMER = "Ovi/model.safetensors"


@pytest.fixture
def required(tiny_dir):
    return requirements_here(tiny_dir, WeightFormat.DTYPE)


def reason(check, *arguments):
    with pytest.raises(NodeUnfit) as caught:
        check(*arguments)
    return str(caught.value)


def test_a_node_like_the_driver_fits(required, tiny_dir):
    check_versions(required)
    check_device("cpu")
    check_weights(required, tiny_dir, MODEL, WeightFormat.DTYPE)
    assert TRANSFORMER in required.weights


def test_every_version_that_differs_is_named(required):
    said = reason(check_versions, replace(required, ovi_ray="9.9", python="2.7"))
    assert said.count("where the driver has") == 2
    assert ("ovi-ray " in said, "9.9" in said, "2.7" in said) == (True, True, True)


def test_a_gpu_that_torch_cannot_use_is_told_with_the_build(required):
    said = reason(check_device, "cuda")
    assert said.startswith("its GPU cannot be used by torch ")


def test_other_and_missing_weights_are_named(required, tiny_dir, tmp_path):
    other = tmp_path / "ckpts"
    shutil.copytree(tiny_dir, other)
    with (other / TRANSFORMER).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x7f")
    (other / "architecture.json").touch()  # of another time, and equal
    (vae,) = [path for path in other.rglob("*.pth") if "VAE" in path.name]
    vae.unlink()
    said = reason(check_weights, required, other, MODEL, WeightFormat.DTYPE)
    assert f"{other / TRANSFORMER} is not the file" in said
    assert f"{vae} cannot be read (No such file or directory)" in said
    assert said.count(";") == 1


def test_a_folder_that_is_not_there_is_told_as_one(required, tmp_path):
    assert str(tmp_path / "gone") in reason(check_weights, required, tmp_path / "gone", MODEL, WeightFormat.DTYPE)


@pytest.mark.parametrize("size", [2, 1000, 64 << 10, 9 << 20])
def test_a_sampled_digest_tells_sizes_and_ends_apart(tmp_path, size):
    content = bytes(range(251)) * (size // 251 + 1)
    digests = set()
    for name, data in {
        "a": content[:size],
        "longer": content[: size + 1],
        "end": content[:size][:-1] + b"\xff",
    }.items():
        (tmp_path / name).write_bytes(data)
        digests.add(sampled_digest(tmp_path / name))
    assert len(digests) == 3
