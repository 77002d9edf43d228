"""Options that have no use beside the others that were given: they are refused, and settings of a job file are told."""

import json

import pytest
import yaml
from typer.testing import CliRunner

from ovi_ray.cli import app
from ovi_ray.inputs.job_spec import BatchSpec, JobSpec, PortableJob
from ovi_ray.submission.bundle import bundle_of
from tests.support.cli import ROOT

PROFILE = ROOT / "cluster" / "profiles" / "a.yaml"


@pytest.fixture
def lists(tmp_path, monkeypatch):
    """A working folder with a list of each sort."""
    monkeypatch.chdir(tmp_path)
    for name in ("p.csv", "p.tsv"):
        (tmp_path / name).write_text("text_prompt\na fox\n", encoding="utf-8")
    (tmp_path / "p.jsonl").write_text('{"text_prompt": "a fox"}\n', encoding="utf-8")
    (tmp_path / "p.txt").write_text("a fox\n", encoding="utf-8")
    for name in ("p.xlsx", "p.ods", "p.parquet"):
        (tmp_path / name).write_bytes(b"read only where its options are right")
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables" / "p.parquet").write_bytes(b"as above")
    return tmp_path


def fields(*arguments):
    """The options that a command refuses."""
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    assert result.exit_code == 2, result.output
    return [problem["field"] for problem in json.loads(result.stdout)["error"]["problems"]]


FORMATS = [
    *((name, "--delimiter", ";") for name in ("p.jsonl", "p.txt", "p.xlsx", "p.ods", "p.parquet", "tables")),
    *((name, "--sheet", "Shots") for name in ("p.csv", "p.tsv", "p.jsonl", "p.txt", "p.parquet", "tables")),
    ("--prompt=a fox", "--delimiter", "tab"),
    ("--prompt=a fox", "--sheet", "Shots"),
    ("a fox runs", "--sheet", "Shots"),
]


@pytest.mark.parametrize("arguments", FORMATS)
def test_an_option_on_the_format_of_a_list_is_refused_beside_one_of_another_format(lists, arguments):
    assert fields("plan", *arguments, "--cluster", str(PROFILE), "--json") == [arguments[1]]


PLACES = ("--ckpt-dir", ".", "--out", "out")
REFUSED = [
    (("render", "p.csv", *PLACES, "--sheet", "Shots"), ["--sheet"]),
    (("render", "p.csv", *PLACES, "--dry-run", "--verify"), ["--verify"]),
    (("compare", "p.csv", *PLACES, "--quality", "high", "--sheet", "Shots"), ["--sheet"]),
    (("submit", "p.jsonl", "--to", "slurm", *PLACES, "--delimiter", ";"), ["--delimiter"]),
    (("submit", "p.csv", "--to", "slurm", *PLACES, "--print"), ["--json"]),
    (("submit", "p.csv", "--to", "slurm", *PLACES, "--image", "ovi", "--queue", "night"), ["--image", "--queue"]),
    (
        ("submit", "p.csv", "--to", "kubernetes", *PLACES, "--account", "film", "--shards", "2"),
        ["--account", "--shards"],
    ),
    (
        ("submit", "p.csv", "--to", "10.0.0.1:8265", *PLACES, "--nodes", "2", "--until-done"),
        ["--nodes", "--until-done"],
    ),
    (("export", "out", "shots", "--audio-rate", "44100", "--source", "auto"), ["--audio-rate", "--source"]),
    (("export", "out", "shots", "--png", "--audio-rate", "44100", "--source", "auto"), ["--audio-rate"]),
    (("export", "out", "shots", "--ckpt-dir", ".", "--device", "cpu"), ["--ckpt-dir", "--device"]),
    (("export", "out", "shots", "--wav", "--source", "video", "--ckpt-dir", "."), ["--ckpt-dir"]),
    (("export", "out", "shots", "--codec", "prores", "--crf", "9", "--link"), ["--crf", "--link"]),
]


@pytest.mark.parametrize(("arguments", "refused"), REFUSED)
def test_options_that_have_no_use_beside_the_others_are_refused_all_at_once(lists, arguments, refused):
    assert fields(*arguments, "--json") == refused


def test_labels_of_a_node_are_printed_beside_no_option_on_what_is_examined():
    options = ("--ckpt-dir", "ckpts", "--model-name", "720x720_5s", "--address", "auto", "--allow-inexact")
    result = CliRunner().invoke(app, ["doctor", "--labels", *options], env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert [option for option in options[::2] if f"{option} is" not in result.stderr] == []


def test_the_format_of_a_job_files_own_list_does_not_concern_a_prompt_in_its_place(lists):
    (lists / "job.yaml").write_text("text_prompt: p.csv\ndelimiter: ;\n")
    assert BatchSpec.from_yaml(lists / "job.yaml").delimiter == ";"
    assert BatchSpec.from_yaml(lists / "job.yaml", {"prompt": "a fox"}).delimiter is None


def test_a_list_is_shipped_without_the_options_on_its_format(lists):
    (lists / "p.csv").write_text("text_prompt~seed\na fox~7\n", encoding="utf-8")
    job = PortableJob.from_options(prompts="p.csv", delimiter="~", ckpt_dir="/ckpts", output_dir="/out")
    shipped = bundle_of(job, name="job", version="1")
    assert "delimiter" not in yaml.safe_load(shipped.files["job.yaml"])
    shipped.write(lists / "there")
    assert PortableJob.from_yaml(lists / "there" / "job.yaml").prompts is not None


@pytest.mark.parametrize(
    ("unused", "used"),
    [
        ({"workers": 2, "cluster": PROFILE}, {"workers": 2}),
        ({"memory_gb": 40.0, "cluster": PROFILE}, {"memory_gb": 40.0}),
        ({"allow_inexact": True, "attention": "sdpa"}, {"allow_inexact": True}),
        ({"elastic": True, "cluster": PROFILE}, {"elastic": True, "cluster": PROFILE, "address": "auto"}),
    ],
)
def test_settings_of_a_job_that_have_no_effect_are_told(tmp_path, unused, used):
    place = {"text_prompt": "a fox", "ckpt_dir": tmp_path, "output_dir": tmp_path / "out"}
    (note,) = JobSpec(**place, **unused).notes
    assert note.startswith(f"{next(iter(unused))} ")
    assert JobSpec(**place, **used).notes == ()
