"""A job that its devices cannot run is refused before anything starts."""

from pathlib import Path

import pytest

from ovi_ray.devices.checks import chosen_weights, device_problems
from ovi_ray.errors import InputError
from ovi_ray.inputs.clip_forms import ClipForm, clip_forms
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.prompt_lists import read_prompt_list
from ovi_ray.preparation import prepare
from ovi_ray.storage.paths import to_location
from tests.support.fake_devices import NODES
from tests.support.jobs import write_prompts


@pytest.fixture
def job(tiny_dir, tmp_path):
    def make(**options):
        given = {"text_prompt": "a fox", "ckpt_dir": tiny_dir, "output_dir": tmp_path / "out", **options}
        return JobSpec.from_options(**given)

    return make


def test_a_backend_that_cannot_run_here_is_refused_with_the_usable_ones(job):
    with pytest.raises(InputError) as raised:
        prepare(job(attention="flash_attn_3", device="cpu"))
    (problem,) = raised.value.problems
    assert (problem.field, problem.value) == ("attention", "flash_attn_3")
    assert "auto, sdpa, sdpa_flash, sdpa_math" in problem.expected


@pytest.mark.parametrize(
    ("node", "backend", "device_or_vendor"),
    [("rtx4090", "flash_attn_3", "sm89"), ("mi300x", "sage", "NVIDIA"), ("h100", "sdpa_aotriton", "ROCm")],
)
def test_the_backend_is_checked_against_the_device_of_this_machine(job, node, backend, device_or_vendor):
    (problem,) = device_problems(job(attention=backend), NODES[node])
    assert (problem.field, problem.value) == ("attention", backend)
    assert device_or_vendor in problem.expected


@pytest.mark.parametrize("options", [{}, {"attention": "sdpa_math", "device": "cpu"}])
def test_a_job_that_the_device_can_run_has_no_problems(job, options):
    assert device_problems(job(**options)) == []


def test_a_job_for_a_cluster_is_not_checked_against_this_machine(job):
    assert device_problems(job(attention="flash_attn_3", address="auto")) == []


@pytest.mark.parametrize("node", ["broken driver", "amd without rocm"])
@pytest.mark.parametrize("device", ["auto", "gpu"])
def test_a_cpu_never_stands_in_for_a_gpu_that_cannot_be_used(job, node, device):
    (problem,) = device_problems(job(device=device), NODES[node])
    assert (problem.field, problem.value) == ("device", device)
    assert "GPU" in problem.expected
    assert device_problems(job(device="cpu"), NODES[node]) == []


def test_a_machine_without_a_gpu_renders_on_its_cpu(job):
    assert device_problems(job(), NODES["cpu"]) == []


@pytest.fixture
def published(job, tmp_path):
    """A job with the published model's sizes, of which no file is there."""

    def make(**options):
        (tmp_path / "published").mkdir(exist_ok=True)
        return job(**{"ckpt_dir": tmp_path / "published", **options})

    return make


def weight_problems(job, node, host_gb=16.0):
    problems = device_problems(job, NODES[node], host_gb=host_gb)
    return [problem for problem in problems if problem.field == "weights"]


def test_a_24_gb_card_is_told_before_anything_loads_which_option_makes_the_model_fit(published):
    (problem,) = weight_problems(published(), "rtx4090")
    assert all(option in problem.expected for option in ("--qint8", "--weights auto", "--fp8"))
    (other_model,) = weight_problems(published(model_name="960x960_5s"), "rtx4090")
    assert "--fp8" not in other_model.expected
    assert weight_problems(published(qint8=True), "rtx4090") == []
    assert weight_problems(published(device="cpu"), "rtx4090") == []
    assert weight_problems(published(), "h100") == []


def test_streamed_blocks_are_offered_where_the_hosts_memory_has_room_for_them_and_refused_where_not(published):
    (problem,) = weight_problems(published(), "rtx4090", host_gb=64.0)
    assert problem.expected.startswith("--weights streamed")
    streamed = published(weights="streamed")
    assert weight_problems(streamed, "rtx4090", host_gb=64.0) == []
    (problem,) = weight_problems(streamed, "rtx4090", host_gb=16.0)
    assert problem.value.startswith("streamed, which needs 32.2 GB of host memory")
    assert "--qint8" in problem.expected


def test_a_card_too_small_for_every_form_is_told_so(published):
    (problem,) = weight_problems(published(model_name="960x960_10s"), "12gb")
    assert "--qint8" not in problem.expected
    assert "larger GPU" in problem.expected


@pytest.mark.parametrize(
    ("node", "host_gb", "options", "chosen"),
    [
        ("rtx4090", 16.0, {}, "qint8"),
        ("rtx4090", 64.0, {}, "streamed"),
        ("h100", 64.0, {}, "dtype"),
        ("12gb", 16.0, {}, "dtype"),  # neither fits: what changes pixels must help
        ("rtx4090 and h100", 40.0, {}, "qint8"),  # half of the host's memory for each
        ("h100", 16.0, {"memory_gb": 20.0}, "qint8"),
    ],
)
def test_the_form_of_the_weights_is_chosen_by_the_devices_where_the_user_leaves_it_open(
    published, node, host_gb, options, chosen
):
    assert chosen_weights(published(weights="auto", **options), NODES[node], host_gb=host_gb) == chosen


def test_the_form_of_the_weights_follows_the_cluster_profile(published):
    profiles = Path(__file__).parents[3] / "cluster" / "profiles"
    assert chosen_weights(published(weights="auto", cluster=profiles / "a.yaml")) == "dtype"
    assert chosen_weights(published(weights="auto", cluster=profiles / "c.yaml")) == "qint8"


def test_the_form_of_the_weights_cannot_be_chosen_for_devices_that_are_not_known(published):
    with pytest.raises(InputError) as raised:
        chosen_weights(published(weights="auto", address="auto"))
    (problem,) = raised.value.problems
    assert (problem.field, problem.value) == ("weights", "auto")


SMALL, LARGE = {"model_name": "720x720_5s"}, {"model_name": "960x960_10s", "quality": "fast"}


def forms_of(job, tmp_path, *rows):
    path = write_prompts(tmp_path / "p.csv", *({"text_prompt": "a fox", **row} for row in rows))
    return clip_forms(read_prompt_list(to_location(path)), job)


def test_the_forms_of_clips_are_those_of_rows_and_sweeps_and_bad_cells_ask_for_none(job, tmp_path):
    fast = job(quality="fast", video_frame_height_width="720x720")
    bad = {"quality": "loud", "video_frame_height_width": "9x9"}
    found = forms_of(fast, tmp_path, {}, {"quality": "exact"}, {"quality": ""}, bad, {"model_name": "960x960_5s"})
    assert [(form.model_name, form.size, form.quality) for form in found] == [
        ("720x720_5s", (720, 720), "fast"),
        ("720x720_5s", (720, 720), "exact"),
        ("960x960_5s", (720, 720), "fast"),
    ]
    swept = job(sweep={"quality": "exact,fast", "model_name": "720x720_5s,960x960_5s"})
    assert len(forms_of(swept, tmp_path, {}, {"video_frame_height_width": "512x512"})) == 2 * 2 * 2
    assert forms_of(job(), tmp_path, bad) == (ClipForm.of_job(job()),)


@pytest.mark.parametrize(
    ("options", "rows", "named"),
    [
        (SMALL, [{}, LARGE], "960x960_10s, 704x1280, quality fast"),
        (LARGE, [{}, SMALL], ""),
        (LARGE, [SMALL | {"quality": "exact"}], None),
        (SMALL, [{"quality": "high"}], None),
    ],
)
def test_room_is_needed_for_the_rows_and_not_for_values_that_no_row_takes(published, tmp_path, options, rows, named):
    asked = published(memory_gb=28.0, **options)
    problems = device_problems(asked, NODES["h100"], forms=forms_of(asked, tmp_path, *rows))
    assert [problem.value for problem in problems] == (
        [] if named is None else [f"28{' for clips of ' * bool(named)}{named}"]
    )


def test_a_card_is_too_small_for_clips_that_only_a_row_asks_for(published, tmp_path):
    asked = published(weights="qint8", **SMALL)
    (problem,) = device_problems(asked, NODES["12gb"], forms=forms_of(asked, tmp_path, LARGE))
    assert "denoising clips of 960x960_10s, 704x1280, quality fast needs" in problem.value


def test_the_form_of_the_weights_follows_the_rows(published, tmp_path):
    auto = published(weights="auto", model_name="720x720_5s", memory_gb=26.0)
    for rows, chosen in (([{}], "dtype"), ([{}, LARGE], "qint8")):
        found = chosen_weights(auto, NODES["h100"], forms=forms_of(auto, tmp_path, *rows), host_gb=8.0)
        assert found == chosen


def test_a_job_is_checked_with_the_rows_of_its_list(published, tmp_path):
    write_prompts(tmp_path / "p.csv", {"text_prompt": "a fox"}, {"text_prompt": "a dog", **LARGE})
    with pytest.raises(InputError) as raised:
        prepare(published(text_prompt=None, prompts=tmp_path / "p.csv", memory_gb=28.0, device="cpu"))
    told = {problem.field: problem.value for problem in raised.value.problems}
    assert told["memory_gb"] == "28 for clips of 960x960_10s, 704x1280, quality fast"


def test_a_prepared_job_has_its_form_of_the_weights(job):
    told = []
    prepared = prepare(job(weights="auto", device="cpu"), on_message=told.append)
    assert (prepared.job.weights, prepared.job.numerics) == ("dtype", "bfloat16")
    assert any("weights: dtype" in line for line in told)


def test_a_memory_budget_too_small_is_refused_with_the_smallest_sufficient_one(job):
    (problem,) = device_problems(job(memory_gb=0.001))
    assert (problem.field, problem.value) == ("memory_gb", "0.001")
    smallest = float(problem.expected.split("at least ")[1].split()[0])
    assert device_problems(job(memory_gb=smallest)) == []
