"""Cluster profiles: the ones in the repository, and the problems reported for bad ones."""

import dataclasses
from pathlib import Path

import pytest
from yardsticks.scenarios import KIND_5S, MIXED_KINDS

from ovi.stages import Stage
from ovi_ray.errors import InputError
from ovi_ray.inputs.cluster_profile import parse_profile, read_profile
from ovi_ray.scheduling.device_profile import DeviceProfile
from ovi_ray.simulation.virtual_cluster import virtual_devices

PROFILES = Path(__file__).parents[3] / "cluster" / "profiles"
TFLOPS = {"encode_text": 200, "encode_first_frame": 120, "denoise": 325, "decode": 120}


def make_profile(**changes: object) -> dict[str, object]:
    devices = {"count": 2, "vendor": "nvidia", "memory_gb": 76, "tflops": TFLOPS, "load_gb_per_s": 3}
    return {"name": "test", "devices": {"gpu": devices | changes}}


def problems_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return {problem.field: problem for problem in caught.value.problems}


def problems(raw):
    return problems_of(lambda: parse_profile(raw))


@pytest.mark.parametrize(("name", "devices"), [("a", 8), ("b", 24), ("c", 16), ("d", 1000)])
def test_the_profiles_in_the_repository_are_valid_and_can_run_every_model(name, devices):
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


def test_the_80_gb_class_takes_the_published_time():
    device = read_profile(PROFILES / "a.yaml").device_profiles["nvidia-80gb"]
    seconds = device.prior_seconds(Stage.DENOISE, 23_800) + device.prior_seconds(Stage.DECODE, 1_160)
    assert seconds == pytest.approx(83, abs=1)


def test_twelve_gb_cards_only_encode_first_frames_or_decode():
    card = read_profile(PROFILES / "b.yaml").device_profiles["nvidia-12gb"]
    fitting = {stage for stage in Stage if card.fits(stage, KIND_5S)}
    assert fitting == {Stage.ENCODE_FIRST_FRAME, Stage.DECODE}


@pytest.mark.parametrize(
    ("architecture", "weights", "has_fp8_products"),
    [("sm90", "bf16", True), ("sm90", "streamed", True), ("sm90", "int8", False), ("sm80", "bf16", False)],
)
def test_a_class_has_8_bit_products_by_its_architecture_and_its_weights(architecture, weights, has_fp8_products):
    raw = make_profile(architecture=architecture, weights=weights)
    assert parse_profile(raw).device_profiles["gpu"].has_fp8_products == has_fp8_products


def test_every_field_of_a_device_profile_can_be_set():
    sizes = {"text_encoder": 0.1, "transformer": 0.2, "video_vae": 0.3, "audio_vae": 0.4, "vocoder": 0.5}
    activations = {
        "encode_text": 2,
        "first_frame_per_thousand_tokens": 5,
        "denoise_per_thousand_tokens": 3,
        "vae_per_thousand_tokens": 4,
    }
    raw = make_profile(
        architecture="sm90",
        sizes=sizes,
        activations=activations,
        stages=["decode"],
        unload_s=9,
        task_overhead_s=8,
        speed=7,
    )
    profile, default = parse_profile(raw).device_profiles["gpu"], DeviceProfile(name="")
    assert [f.name for f in dataclasses.fields(profile) if getattr(profile, f.name) == getattr(default, f.name)] == []
    assert dataclasses.asdict(profile.sizes) == sizes
    assert dataclasses.asdict(profile.activations) == activations
    assert dataclasses.asdict(profile.rates) == TFLOPS


def test_every_problem_is_reported_with_its_path_value_and_what_is_accepted():
    raw = make_profile(count=0, memory=3, memory_gb=-1, tflops={"denoise": 1, "decod": 3})
    found = problems(raw | {"devcies": {}})
    assert {field: (problem.value, problem.expected) for field, problem in found.items()} == {
        "devices.gpu.count": ("0", "a number of at least 1"),
        "devices.gpu.memory_gb": ("-1", "a number greater than 0"),
        "devices.gpu.tflops.encode_text": ("missing", "a value"),
        "devices.gpu.tflops.encode_first_frame": ("missing", "a value"),
        "devices.gpu.tflops.decode": ("missing", "a value"),
        "devices.gpu.tflops.decod": (
            "an unknown key",
            "one of encode_text, encode_first_frame, denoise, decode; did you mean 'decode'?",
        ),
        "devices.gpu.memory": ("an unknown key", found["devices.gpu.memory"].expected),
        "devcies": ("an unknown key", "one of name, description, currency, devices; did you mean 'devices'?"),
    }
    assert found["devices.gpu.memory"].expected.endswith("did you mean 'memory_gb'?")


def test_an_unknown_key_of_an_optional_section_is_reported_with_the_known_ones():
    found = problems(make_profile(sizes={"vocodr": 1}, activations={"encode": 1}))
    assert found["devices.gpu.sizes.vocodr"].expected.endswith("did you mean 'vocoder'?")
    assert found["devices.gpu.activations.encode"].expected.endswith("did you mean 'encode_text'?")


@pytest.mark.parametrize("field", ["load_gb_per_s", "unload_s", "task_overhead_s", "speed", "price_per_hour"])
def test_negative_times_and_prices_are_refused(field):
    (problem,) = problems(make_profile(**{field: -1})).values()
    assert (problem.field, problem.value) == (f"devices.gpu.{field}", "-1")


@pytest.mark.parametrize("value", [float("nan"), "inf", "fast", None, [1]])
def test_a_rate_that_is_no_finite_number_is_refused(value):
    assert [*problems(make_profile(load_gb_per_s=value))] == ["devices.gpu.load_gb_per_s"]


def test_an_unknown_stage_is_refused_with_the_known_ones():
    (problem,) = problems(make_profile(stages=["encode"])).values()
    assert (problem.field, problem.value) == ("devices.gpu.stages.0", "'encode'")
    assert problem.expected == "'encode_text', 'encode_first_frame', 'denoise' or 'decode'"


@pytest.mark.parametrize("raw", [None, [], "text", {"name": "x"}, {"name": "x", "devices": {}}])
def test_a_value_that_is_no_profile_is_refused(raw):
    assert problems(raw)


@pytest.mark.parametrize("content", [None, "a: [1\nb: }"])
def test_a_file_that_is_missing_or_not_yaml_is_named(tmp_path, content):
    path = tmp_path / "profile.yaml"
    if content:
        path.write_text(content)
    (problem,) = problems_of(lambda: read_profile(path)).values()
    assert problem.file == str(path)


def test_a_24_gb_card_denoises_with_weights_that_are_streamed():
    whole, streamed = (parse_profile(make_profile(memory_gb=24, weights=form)) for form in ("bf16", "streamed"))
    assert any(field.startswith("denoise") for field in problems_of(lambda: whole.check([KIND_5S])))
    streamed.check([KIND_5S])


def test_a_model_that_fits_nowhere_is_reported_with_the_stage_and_the_reason_of_each_class():
    profile = parse_profile(make_profile(memory_gb=12, weights="int8"))
    found = problems_of(lambda: profile.check([KIND_5S]))
    (problem,) = [problem for field, problem in found.items() if field.startswith("denoise of 720x720_5s 704x704")]
    assert "gpu has 12.0 GB and denoise needs 14.4 GB" in problem.value
    assert problem.expected.endswith("gpu can run encode_first_frame, decode")
    assert any(field.startswith("encode_text") for field in found)


def test_sizes_of_a_small_model_can_be_given():
    tiny = {"text_encoder": 0.01, "transformer": 0.01, "video_vae": 0.01, "audio_vae": 0.01, "vocoder": 0.01}
    profile = parse_profile(make_profile(memory_gb=5, sizes=tiny))
    profile.check([KIND_5S])
    assert [device.sizes.vocoder for device in profile.device_profiles.values()] == [0.01]


@pytest.mark.parametrize("content", ["text_prompt\nA dog\n", "- 1\n- 2\n", "", "[]"])
def test_a_file_that_is_no_cluster_profile_is_told_with_the_keys_that_one_has(tmp_path, content):
    (tmp_path / "a.csv").write_text(content)
    problem = problems_of(lambda: read_profile(tmp_path / "a.csv"))[None]
    assert problem.expected == "a cluster profile: a mapping with the keys name, description, currency, devices"


def test_problems_of_a_file_are_told_with_their_lines_and_in_plain_words(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text(
        "name: [x]\ndevices:\n  gpu:\n    count: many\n    vendor: nvidia\n    memory_gb: .inf\n"
        "    tflops: 3\n    stages: decode\n    load_gb_per_s: x\n  cpu: {}\n"
    )
    found = problems_of(lambda: read_profile(path))
    assert {field: (problem.line, problem.expected) for field, problem in found.items() if "cpu" not in field} == {
        "name": (1, "text"),
        "devices.gpu.count": (4, "a whole number"),
        "devices.gpu.memory_gb": (6, "a finite number"),
        "devices.gpu.tflops": (7, "a mapping of keys to values"),
        "devices.gpu.stages": (8, "a list"),
        "devices.gpu.load_gb_per_s": (9, "a number"),
    }
    assert {problem.line for field, problem in found.items() if "cpu" in field} == {10}
