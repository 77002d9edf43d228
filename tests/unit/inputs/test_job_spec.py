import os
import subprocess
import sys

import pytest

from ovi.config import SolverName
from ovi_ray.errors import COMMAND_LINE, MAX_SHOWN, InputError, Problem
from ovi_ray.inputs.job_spec import BatchSpec, JobSpec, Mode
from tests.support.files import snapshot


@pytest.fixture
def write_job(tmp_path):
    """Write a job file beside a prompt list and a checkpoint folder; lines are added to what a job needs."""
    (tmp_path / "ckpts").mkdir()
    (tmp_path / "prompts.csv").write_text("text_prompt\nA dog barks\n")

    def write(text="", base="ckpt_dir: ckpts\noutput_dir: out\ntext_prompt: prompts.csv\n"):
        path = tmp_path / "job.yaml"
        path.write_text(base + text)
        return path

    return write


def problems_of(call):
    with pytest.raises(InputError) as caught:
        call()
    return caught.value.problems


def problems_in(path, **overrides):
    return problems_of(lambda: JobSpec.from_yaml(path, overrides))


def test_the_published_keys_are_read(write_job, tmp_path):
    job = JobSpec.from_yaml(
        write_job(
            "sample_steps: 30\nmodel_name: 960x960_5s\nsolver_name: dpm++\nshift: 4\nsp_size: 1\n"
            "audio_guidance_scale: 2.5\nvideo_guidance_scale: 5\nmode: i2v\nfp8: False\ncpu_offload: False\nqint8: false\n"
            "seed: 7\nvideo_negative_prompt: ''\naudio_negative_prompt: echo\nvideo_frame_height_width: [512, 992]\n"
            "image_path:\nslg_layer: 9\neach_example_n_times: 2\n"
        )
    )
    assert (job.model_name, job.mode, job.each_example_n_times) == ("960x960_5s", Mode.I2V, 2)
    assert (job.params.solver_name, job.params.shift, job.params.seed) == (SolverName.DPMPP, 4.0, 7)
    assert (job.params.video_frame_height_width, job.params.slg_layer) == ((512, 992), 9)
    assert (job.params.video_negative_prompt, job.params.audio_negative_prompt) == ("", "echo")
    assert job.prompts.local_path == tmp_path / "prompts.csv"
    assert job.text_prompt is None


def test_paths_are_relative_to_the_job_file_and_options_to_the_working_directory(write_job, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    job = JobSpec.from_yaml(write_job(), {"output_dir": "here"})
    assert job.ckpt_dir.local_path == tmp_path / "ckpts"
    assert job.output_dir.local_path == elsewhere / "here"


def test_options_override_a_job_file_that_is_wrong(write_job):
    job = JobSpec.from_yaml(write_job("num_steps: 0\nseed: x\n"), {"sample_steps": 5, "seed": 1, "workers": None})
    assert (job.sample_steps, job.seed) == (5, 1)


def test_num_steps_means_sample_steps(write_job):
    assert JobSpec.from_yaml(write_job("num_steps: 12\n")).sample_steps == 12


def test_num_steps_beside_sample_steps_is_refused(write_job):
    (problem,) = problems_in(write_job("num_steps: 12\nsample_steps: 13\n"))
    assert (problem.field, problem.line, problem.value) == ("num_steps", 4, "12")


def test_a_prompt_that_names_no_list_is_rendered_as_a_prompt(write_job):
    job = JobSpec.from_yaml(write_job(base="ckpt_dir: ckpts\noutput_dir: out\ntext_prompt: A dog. Audio barks\n"))
    assert job.text_prompt == "A dog. Audio barks"
    assert job.prompts is None


def test_several_gpus_per_clip_are_noted_as_unused(write_job):
    (note,) = JobSpec.from_yaml(write_job("sp_size: 8\n")).notes
    assert note.startswith("sp_size 8 is not used")


def test_every_problem_is_reported_with_line_value_and_what_is_accepted(write_job):
    problems = problems_in(
        write_job(
            "sample_step: 3\nseed: 1.5\nshift: wide\nsolver_name: unipcc\nmodel_name: 720x720\nmode: t2i2v\nfp8: true\n"
            "qint8: maybe\ncpu_offload: yes please\nvideo_frame_height_width: [0, 5]\neach_example_n_times: 0\nworkers: two\n"
            "dtype: float16\nimage_path: none.png\nvideo_guidance_scale: .nan\naudio_negative_prompt: 5\nsp_size: 0\n"
        ),
        sample_steps=-3,
    )
    found = {(problem.line, problem.field, problem.value): problem.expected for problem in problems}
    for place, expected in {
        (4, "sample_step", "an unknown key"): "a known key; did you mean 'sample_steps'?",
        (5, "seed", "1.5"): "an integer from 0 to 2**63-1",
        (6, "shift", "'wide'"): "a positive number",
        (7, "solver_name", "'unipcc'"): "one of unipc, dpm++, euler; did you mean 'unipc'?",
        (8, "model_name", "'720x720'"): "one of 720x720_5s, 960x960_5s, 960x960_10s; did you mean '720x720_5s'?",
        (9, "mode", "'t2i2v'"): "one of auto, t2v, i2v: first frames drawn",
        (10, "fp8", "true"): "false: only model 720x720_5s is published in fp8",
        (11, "qint8", "'maybe'"): "true or false: 8-bit integer weights",
        (12, "cpu_offload", "'yes please'"): "true or false: components",
        (13, "video_frame_height_width", "[0, 5]"): "two positive integers",
        (14, "each_example_n_times", "0"): "an integer of at least 1",
        (15, "workers", "'two'"): "a number of workers",
        (16, "dtype", "'float16'"): "bfloat16 or float32",
        (17, "image_path", "'none.png', a file that does not exist"): "an image file",
        (18, "video_guidance_scale", "nan"): "a finite number",
        (19, "audio_negative_prompt", "5"): "text",
        (20, "sp_size", "0"): "an integer of at least 1",
        (None, "--sample-steps", "-3"): "an integer of at least 1",
    }.items():
        assert found[place].startswith(expected), place
    assert len(found) == len(problems) == 18


def test_a_missing_value_is_named_as_the_key_or_the_option_that_sets_it(write_job):
    in_file = problems_in(write_job(base="seed: 1\n"))
    on_line = problems_of(lambda: JobSpec.from_options(seed=1))
    assert {problem.field for problem in in_file} == {"prompts", "ckpt_dir", "output_dir"}
    assert {problem.field for problem in on_line} == {"PROMPTS", "--ckpt-dir", "--out"}
    assert {problem.file for problem in on_line} == {COMMAND_LINE}
    assert {problem.value for problem in (*in_file, *on_line)} == {"missing"}


def test_paths_that_cannot_be_used_are_reported_before_anything_is_read(write_job, tmp_path):
    (tmp_path / "file").write_text("")
    problems = problems_in(write_job(base="ckpt_dir: nowhere\noutput_dir: file/out\ntext_prompt: none.csv\n"))
    assert [(problem.line, problem.field, problem.value) for problem in problems] == [
        (1, "ckpt_dir", "'nowhere', which is not a folder"),
        (2, "output_dir", "'file/out' (Not a directory)"),
        (3, "text_prompt", "'none.csv', a file that does not exist"),
    ]


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "File name too long"), ("link", "No such file or directory"), ("a\0b", "embedded null byte")],
)
def test_an_output_folder_that_cannot_be_created_is_refused(write_job, tmp_path, name, reason):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (problem,) = problems_in(write_job(), output_dir=str(tmp_path / name))
    assert (problem.field, reason in problem.value) == ("--out", True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_an_output_folder_without_permission_to_write_is_refused(write_job, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o555)
    (problem,) = problems_in(write_job(), output_dir=str(tmp_path / "locked" / "out"))
    assert (problem.field, "Permission denied" in problem.value) == ("--out", True)


def test_checking_a_job_creates_nothing(write_job, tmp_path):
    path = write_job()
    before = snapshot(tmp_path)
    JobSpec.from_yaml(path, {"output_dir": str(tmp_path / "new" / "out")})
    assert snapshot(tmp_path) == before


def test_a_batch_without_folders_ignores_those_of_a_job_file_and_checks_the_rest(write_job):
    batch = BatchSpec.from_yaml(write_job("seed: 7\n", base="ckpt_dir: nowhere\noutput_dir: 5\nprompts: prompts.csv\n"))
    assert batch.seed == 7
    (problem,) = problems_of(lambda: BatchSpec.from_yaml(write_job("ckpt_dri: x\n")))
    assert problem.expected == "a known key; did you mean 'ckpt_dir'?"


@pytest.mark.parametrize("prompt", ["''", "'  '"])
def test_an_empty_prompt_is_refused(write_job, prompt):
    (problem,) = problems_in(write_job(base=f"ckpt_dir: ckpts\noutput_dir: out\ntext_prompt: {prompt}\n"))
    assert (problem.line, problem.field) == (3, "text_prompt")


def test_a_list_and_a_prompt_together_are_refused(write_job):
    (problem,) = problems_in(write_job("prompts: prompts.csv\n"))
    assert (problem.field, problem.expected) == ("prompts", "either a prompt list or a prompt, not both")


def test_an_image_is_not_inspected_in_mode_t2v(write_job):
    assert JobSpec.from_yaml(write_job("mode: t2v\nimage_path: none.png\n")).mode is Mode.T2V


@pytest.mark.parametrize(
    ("content", "line", "value"),
    [
        (b"", None, "an empty file"),
        (b"# nothing\n", None, "an empty file"),
        (b"seed: [1\nshift: 2", 2, "not YAML at column"),
        (b"seed: 1\n- 2\n", 2, "not YAML at column"),
        (b"- seed\n", None, "a list"),
        (b"seed: 1\nseed: 2\n", 2, "given again, after line 1"),
        (b"seed: 1\nprompt: caf\xe9\n", 2, "byte 0xe9 at offset 19 is not UTF-8"),
        ("seed: 1\n".encode("utf-16"), 1, "UTF-16 text"),
        (b"seed: \x01\n", 1, "the character U+0001"),
    ],
)
def test_a_file_that_is_not_a_job_is_reported_with_its_line(tmp_path, content, line, value):
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    (problem,) = problems_in(path)
    assert (problem.file, problem.line) == (str(path), line)
    assert problem.value.startswith(value)


def test_a_job_file_that_does_not_exist_is_named(tmp_path):
    (problem,) = problems_in(tmp_path / "none.yaml")
    assert (problem.file, problem.value) == (str(tmp_path / "none.yaml"), "a file that does not exist")


def test_a_message_groups_by_file_and_is_capped_while_the_error_keeps_all():
    error = InputError(
        Problem(file="a.csv", row=i, field="seed", value="'x'", expected="an integer") for i in range(70)
    )
    lines = str(error).splitlines()
    assert lines[:3] == ["70 problems with the input:", "a.csv", "  row 0: seed is 'x'; expected an integer"]
    assert lines[-1] == "... and 20 more"
    assert len(lines) == MAX_SHOWN + 3
    assert len(error.problems) == 70


def test_planning_imports_neither_torch_nor_ray():
    code = "import sys, ovi_ray.inputs.task_table; assert not {'torch', 'ray', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# -- how clips are computed --------------------------------------------------------------------------------------------


def test_by_default_attention_is_measured_and_nothing_changes_pixels(write_job):
    job = JobSpec.from_yaml(write_job())
    assert (job.attention, job.weights, job.numerics) == ("auto", "dtype", "bfloat16")


@pytest.mark.parametrize(
    ("text", "numerics"),
    [
        ("qint8: true\n", "bfloat16+qint8"),
        ("fp8: true\n", "bfloat16+fp8"),
        ("weights: qint8\n", "bfloat16+qint8"),
        ("weights: fp8\nfp8: true\n", "bfloat16+fp8"),
        ("dtype: float32\nqint8: true\nallow_inexact: true\n", "float32+qint8+inexact_attention"),
        ("attention: sage\n", "bfloat16+inexact_attention"),
        ("compile: true\n", "bfloat16+compiled"),
        ("compile: true\nfp8: true\nallow_inexact: true\n", "bfloat16+fp8+inexact_attention+compiled"),
        ("attention: sdpa_math\ncpu_offload: true\n", "bfloat16"),
        ("kernels: eager\n", "bfloat16"),
        ("kernels: auto\ncompile: true\n", "bfloat16+compiled"),
        ("kernels: fused\n", "bfloat16+fused"),
    ],
)
def test_whatever_changes_pixels_is_part_of_the_numerics(write_job, text, numerics):
    assert JobSpec.from_yaml(write_job(text)).numerics == numerics


@pytest.mark.parametrize(
    "text",
    [
        "weights: int4\n",
        "weights: auto\nqint8: true\n",
        "weights: qint8\nfp8: true\n",
        "weights: fp8\nmodel_name: 960x960_5s\n",
    ],
)
def test_weights_in_two_forms_or_in_one_that_is_not_published_are_refused(write_job, text):
    (problem,) = problems_in(write_job(text))
    assert problem.field == "weights"


def test_an_unknown_attention_backend_is_refused_with_the_known_ones(write_job):
    (problem,) = problems_in(write_job("attention: flash\n"))
    assert problem.field == "attention"
    assert "one of auto, flash_attn_3, flash_attn_2, sage, sdpa" in problem.expected


@pytest.mark.parametrize(
    ("text", "field", "expected"),
    [
        ("fp8: true\nqint8: true\n", "qint8", "false beside fp8"),
        ("model_name: 960x960_10s\nfp8: true\n", "fp8", "only model 720x720_5s is published in fp8"),
        ("kernels: triton\n", "kernels", "one of auto, eager, fused"),
        ("kernels: fused\ncompile: true\n", "kernels", "auto or eager beside compile"),
        ("memory_gb: 0\n", "memory_gb", "a positive number of GB"),
    ],
)
def test_weights_and_memory_that_cannot_be_are_refused(write_job, text, field, expected):
    (problem,) = problems_in(write_job(text))
    assert problem.field == field
    assert expected in problem.expected


def test_a_job_that_nodes_are_added_for_says_how_many_workers_it_wants_at_most_and_on_what(write_job):
    for given in ("", ", workers: 3", ", device: gpu"):
        (problem,) = problems_in(write_job(f"resources: {{elastic: true{given}}}\n"))
        assert problem.field == "resources.elastic"
    job = JobSpec.from_yaml(write_job("resources: {elastic: true, workers: 3, device: gpu}\n"))
    assert (job.elastic, job.workers) == (True, 3)


@pytest.mark.parametrize("address", ["", " "])
def test_an_address_that_is_an_unset_variable_starts_no_cluster_of_its_own(write_job, address):
    (problem,) = problems_in(write_job(), address=address)
    assert problem.field == "--address"
