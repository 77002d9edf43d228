"""The files that are shipped of a job, and its id."""

import io
import os
import re
import zipfile

import pytest

from ovi.config import Architecture
from ovi_ray.errors import InputError
from ovi_ray.inputs.bad_rows import of_good_rows
from ovi_ray.inputs.job_spec import PortableJob
from ovi_ray.inputs.job_summary import manifest_of
from ovi_ray.inputs.manifest import build_manifest, read_prompts
from ovi_ray.submission.bundle import bundle_of, job_name
from ovi_ray.submission.states import JOB_ID
from tests.support.jobs import write_prompts


def clips_of(job):
    return build_manifest(job, Architecture(), weights=lambda name: name, numerics=job.numerics).table.to_pylist()


def unpacked(bundle, folder):
    bundle.write(folder)
    return PortableJob.from_yaml(folder / "job.yaml")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_the_shipped_job_makes_the_same_clips_as_the_one_here(tmp_path, image, suffix):
    rows = [
        {
            "text_prompt": "A fox",
            "image_path": "frames/a b.png",
            "seed": "7",
            "meta_shot": "1",
            "audio_negative_prompt": "",
        },
        {"text_prompt": "A dog", "image_path": "", "seed": "", "meta_shot": "", "audio_negative_prompt": "hiss"},
        {"text_prompt": "A cat", "image_path": str(image), "seed": "", "meta_shot": "x", "audio_negative_prompt": ""},
    ]
    prompts = tmp_path / f"list.{suffix}"
    if suffix == "csv":
        write_prompts(prompts, *rows)
    elif suffix == "jsonl":
        import json

        prompts.write_text("".join(f"{json.dumps({k: v for k, v in row.items() if v})}\n" for row in rows))
    else:
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), prompts)
    job = PortableJob.from_options(
        prompts=prompts,
        ckpt_dir="/models/ovi",
        output_dir="/shared/out",
        sweep={"shift": [3, 5]},
        environment={"A": "b c"},
        retries=4,
        each_example_n_times=2,
    )
    there = unpacked(bundle_of(job, name="x", version="1"), tmp_path / "there")
    here, shipped = clips_of(job), clips_of(there)
    ignored = ("image_path", "line")  # the shipped list has another form
    assert [{k: v for k, v in clip.items() if k not in ignored} for clip in shipped] == [
        {k: v for k, v in clip.items() if k not in ignored} for clip in here
    ]
    assert {clip["image_path"] for clip in shipped if clip["image_path"]} == {
        str(next((tmp_path / "there" / "images").iterdir()))
    }
    assert (there.environment, there.retries, str(there.output_dir)) == ({"A": "b c"}, 4, "/shared/out")


def test_an_image_and_a_cluster_profile_of_the_job_are_shipped(tmp_path, image, make_bundle):
    profile = "cluster/profiles/a.yaml"
    bundle = make_bundle(image_path=image, cluster=profile)
    there = unpacked(bundle, tmp_path / "there")
    assert there.image_path.local_path.parent == tmp_path / "there" / "images"
    assert there.cluster.local_path == tmp_path / "there" / "cluster.yaml"


def test_images_that_the_mode_ignores_are_not_shipped(image, make_bundle):
    assert not [name for name in make_bundle(image_path=image, mode="t2v").files if name.startswith("images/")]


def test_the_same_job_has_the_same_id_from_every_folder(tmp_path, make_bundle):
    first, second = make_bundle(), make_bundle(folder=tmp_path / "elsewhere")
    assert first.job_id == second.job_id
    assert JOB_ID.fullmatch(first.job_id)


@pytest.mark.parametrize(
    "change",
    [{"seed": 5}, {"output_dir": "/shared/other"}, {"sweep": {"seed": [1]}}, {"ckpt_dir": "/x"}, {"workers": 3}],
)
def test_another_job_has_another_id(make_bundle, change):
    assert make_bundle().job_id != make_bundle(**change).job_id


@pytest.mark.parametrize("name", ["Über nacht!", "../../etc", "x" * 300, "--", "a/b", "job.id"])
def test_an_id_is_a_name_that_every_target_accepts(make_bundle, name):
    job_id = make_bundle(name=name).job_id
    assert JOB_ID.fullmatch(job_id)
    assert len(f"{job_id}-999") <= 63


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("jobs/quickstart/job.yaml", "quickstart"),
        ("jobs/night.yml", "night"),
        ("lists/a.b.csv", "a.b"),
        ("A fox runs. Audio: rain", "prompt"),
    ],
)
def test_a_job_is_named_after_its_file(source, name):
    assert job_name(source) == name


def test_a_job_without_folders_is_refused_with_both(tmp_path):
    job = PortableJob.from_options(text_prompt="A fox")
    with pytest.raises(InputError) as caught:
        bundle_of(job, name="x", version="1")
    assert [problem.field for problem in caught.value.problems] == ["ckpt_dir", "output_dir"]


def test_equal_bundles_are_equal_archives_with_a_name_for_each_file(make_bundle):
    bundle = make_bundle()
    packed = bundle.archive({"start.sh": b"#!/bin/sh\n"})
    assert packed == make_bundle().archive({"start.sh": b"#!/bin/sh\n"})
    names = zipfile.ZipFile(io.BytesIO(packed)).namelist()
    assert sorted(names) == sorted([*bundle.files, "start.sh"])
    assert not [name for name in names if re.match(r"/|\.\.", name)]


def test_an_archive_that_is_too_large_is_refused_with_its_size_before_it_is_sent(make_bundle):
    with pytest.raises(InputError) as caught:
        make_bundle().archive({"large": os.urandom(1_500_000)}, max_bytes=1_000_000)
    (problem,) = caught.value.problems
    assert "2 MB compressed" in problem.value


def test_what_must_exist_on_the_nodes_is_told(make_bundle):
    assert make_bundle().must_exist == ("/models/ovi", "/shared/out")
    assert make_bundle(ckpt_dir="s3://bucket/ckpts").must_exist == ("/shared/out",)


def test_bad_rows_are_told_and_stay_bad_where_the_others_are_rendered(tmp_path):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(
        '{"text_prompt": "A fox"}\nno json\n{"text_prompt": "A cat", "image_path": "gone.png"}\n{"text_prompt": "A dog"}\n'
    )
    job = PortableJob.from_options(prompts=str(prompts), ckpt_dir="/models", output_dir="/out")
    with pytest.raises(InputError):
        bundle_of(job, name="night", version="1")
    bundle = bundle_of(job, name="night", version="1", skip_bad_rows=True, render_options=("--metrics", "9400"))
    assert [bad.row for bad in bundle.bad_rows] == [2, 3]
    assert bundle.clips == 2
    assert bundle.render_options == ("--skip-bad-rows", "--metrics", "9400")
    shipped = unpacked(bundle, tmp_path / "there")
    manifest, bad = of_good_rows(lambda rows: manifest_of(shipped, rows), read_prompts(shipped))
    assert manifest.table.column("row").to_pylist() == [1, 4]
    assert [row.row for row in bad] == [2, 3]
