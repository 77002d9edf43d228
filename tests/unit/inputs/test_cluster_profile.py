"""Cluster profiles: the ones that are kept, and everything that can be wrong with one."""

import dataclasses
from pathlib import Path

import pytest
from yardsticks.scenarios import KIND_5S, MIXED_KINDS

from ovi.stages import Stage
from ovi_ray.errors import InputError
from ovi_ray.inputs.cluster_profile import parse_profile, read_profile
from ovi_ray.simulation.virtual_cluster import virtual_devices

PROFILES = Path(__file__).parents[3] / "cluster" / "profiles"


def make_profile(**changes: object) -> dict[str, object]:
    devices = {
        "count": 2,
        "vendor": "nvidia",
        "memory_gb": 76,
        "tflops": {"encode_text": 200, "encode_first_frame": 120, "denoise": 325, "decode": 120},
        "load_gb_per_s": 3,
    }
    return {"name": "test", "devices": {"gpu": devices | changes}}


def problems(raw: object) -> list[str]:
    with pytest.raises(InputError) as caught:
        parse_profile(raw)
    return [str(problem) for problem in caught.value.problems]


@pytest.mark.parametrize(("name", "devices"), [("a", 8), ("b", 24), ("c", 16), ("d", 1000)])
def test_the_kept_profiles_are_valid_and_render_every_model(name, devices):
    profile = read_profile(PROFILES / f"{name}.yaml")
    assert len(virtual_devices(profile)) == devices
    profile.check([*MIXED_KINDS, dataclasses.replace(KIND_5S, has_image=True)])


@pytest.mark.parametrize("name", "abcd")
def test_every_assumed_number_has_a_source(name):
    lines = (PROFILES / f"{name}.yaml").read_text().splitlines()
    numbers = [
        line for line in lines if any(key in line for key in ("memory_gb:", "load_gb_per_s:", "price_per_hour:"))
    ]
    assert all("assumed" in line or "published" in line for line in numbers)


def test_the_80_gb_class_makes_the_published_time():
    device = read_profile(PROFILES / "a.yaml").device_profiles["nvidia-80gb"]
    seconds = device.prior_seconds(Stage.DENOISE, 23_800) + device.prior_seconds(Stage.DECODE, 1_160)
    assert seconds == pytest.approx(83, abs=1)


def test_twelve_gb_cards_only_encode_or_decode():
    card = read_profile(PROFILES / "b.yaml").device_profiles["nvidia-12gb"]
    assert not card.fits(Stage.DENOISE, KIND_5S)
    assert card.fits(Stage.DECODE, KIND_5S)
    assert card.fits(Stage.ENCODE_TEXT, KIND_5S)


def test_everything_wrong_is_told_at_once():
    raw = make_profile(count=0, memory=3, memory_gb=-1, tflops={"denoise": 1, "decod": 3})
    found = problems(raw | {"devcies": {}})
    assert len(found) == 8
    assert any("devices.gpu.memory_gb is -1; expected a number greater than 0" in line for line in found)
    assert any("did you mean 'decode'?" in line for line in found)
    assert any("did you mean 'memory_gb'?" in line for line in found)
    assert any("did you mean 'devices'?" in line for line in found)


@pytest.mark.parametrize("field", ["load_gb_per_s", "unload_s", "task_overhead_s", "speed", "price_per_hour"])
def test_negative_times_and_prices_are_refused(field):
    assert f"devices.gpu.{field} is -1" in problems(make_profile(**{field: -1}))[0]


@pytest.mark.parametrize("value", [".nan", "inf", "fast", None, [1]])
def test_a_rate_that_is_no_number_is_refused(value):
    raw = make_profile(load_gb_per_s=float("nan") if value == ".nan" else value)
    assert "devices.gpu.load_gb_per_s" in problems(raw)[0]


def test_an_unknown_stage_names_the_stages():
    assert (
        "expected 'encode_text', 'encode_first_frame', 'denoise' or 'decode'"
        in problems(make_profile(stages=["encode"]))[0]
    )


@pytest.mark.parametrize("raw", [None, [], "text", {"name": "x"}, {"name": "x", "devices": {}}])
def test_what_is_no_profile_is_refused(raw):
    assert problems(raw)


def test_a_file_that_is_missing_or_no_yaml_is_named(tmp_path):
    with pytest.raises(InputError) as caught:
        read_profile(tmp_path / "none.yaml")
    assert "none.yaml" in str(caught.value.problems[0])
    (tmp_path / "bad.yaml").write_text("a: [1\nb: }")
    with pytest.raises(InputError) as caught:
        read_profile(tmp_path / "bad.yaml")
    assert "bad.yaml" in str(caught.value.problems[0])


def test_a_model_that_fits_nowhere_says_which_stage_fits_where_and_why_not():
    profile = parse_profile(make_profile(memory_gb=12, weights="int8"))
    with pytest.raises(InputError) as caught:
        profile.check([KIND_5S])
    (problem,) = caught.value.problems
    assert "denoise of 720x720_5s 704x704" in str(problem)
    assert "gpu has 12.0 GB and denoise needs 13.4 GB" in str(problem)
    assert "gpu can run encode_text, encode_first_frame, decode" in str(problem)


def test_sizes_of_a_small_model_can_be_given():
    tiny = {"text_encoder": 0.01, "transformer": 0.01, "video_vae": 0.01, "audio_vae": 0.01, "vocoder": 0.01}
    profile = parse_profile(make_profile(memory_gb=5, sizes=tiny))
    profile.check([KIND_5S])
    assert [device.sizes.vocoder for device in profile.device_profiles.values()] == [0.01]
