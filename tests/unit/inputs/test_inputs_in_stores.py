"""Prompt lists, images, profiles and job files that lie in a store: a real S3 server on loopback."""

import json
import time

import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet
import pytest
from PIL import Image
from typer.testing import CliRunner

from ovi.config import Architecture
from ovi.errors import InvalidImage
from ovi_ray.cli import app
from ovi_ray.errors import InputError, StorageUnavailable
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.first_frames import ImageRefusal, inspect_image
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest
from ovi_ray.inputs.text_files import readable_problem
from ovi_ray.simulation.virtual_cluster import virtual_devices
from ovi_ray.storage.object_store import ObjectStore
from ovi_ray.storage.paths import Location, to_location
from ovi_ray.storage.store import Timeouts
from ovi_ray.storage.uris import connector
from ovi_ray.workers.first_frame import first_frame_file
from tests.support.s3 import free_port

ROWS = [{"text_prompt": "A dog, barking", "seed": 5}, {"text_prompt": 'He says "hi"', "seed": 6}]


@pytest.fixture
def put(s3_bucket):
    """Put a file into the bucket; gives its URI."""

    def put(name, content):
        location = to_location(f"{s3_bucket}/{name}")
        location.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(location)

    return put


@pytest.fixture
def build(tmp_path):
    def build(prompts, **options):
        options = {"ckpt_dir": tmp_path, "output_dir": tmp_path} | options
        job = JobSpec.from_options(prompts=prompts, **options)
        return build_manifest(job, Architecture(), weights=lambda _: "w", numerics="bfloat16")

    return build


def column(manifest, name):
    return manifest.table.column(name).to_pylist()


def told(call):
    with pytest.raises(InputError) as caught:
        call()
    return [str(problem) for problem in caught.value.problems]


def png(path, color):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (640, 480), color).save(path)
    return path.read_bytes()


# -- lists and images ----------------------------------------------------------------------------------------------


def test_a_list_with_images_gives_the_same_clips_in_a_store_as_on_a_disk(put, build, tmp_path, s3_bucket):
    text = "text_prompt,image_path\na fox,pngs/a.png\na boat,pngs/b.png\nrain,\n"
    (tmp_path / "p.csv").write_text(text)
    for name, color in (("a", "red"), ("b", "blue")):
        put(f"lists/pngs/{name}.png", png(tmp_path / "pngs" / f"{name}.png", color))
    here, there = build(tmp_path / "p.csv"), build(put("lists/p.csv", text))
    assert column(there, "clip_id") == column(here, "clip_id")
    assert column(there, "image_path") == [f"{s3_bucket}/lists/pngs/a.png", f"{s3_bucket}/lists/pngs/b.png", None]


def test_a_list_in_a_store_may_name_images_elsewhere(put, build, tmp_path):
    png(tmp_path / "here.png", "red")
    image = put("other/there.png", png(tmp_path / "there.png", "blue"))
    manifest = build(put("p.csv", f"text_prompt,image_path\na,{tmp_path}/here.png\nb,{image}\n"))
    assert column(manifest, "image_path") == [str(tmp_path / "here.png"), image]


def test_an_image_that_many_rows_name_is_fetched_once(put, build, tmp_path, s3_server):
    image = put("a.png", png(tmp_path / "a.png", "red"))
    prompts = put("p.csv", "text_prompt,image_path\n" + "".join(f"prompt {i},a.png\n" for i in range(20)))
    s3_server.forget_requests()
    build(prompts)
    assert len([path for path in s3_server.requests() if path.endswith("a.png")]) == 1
    assert image.endswith("a.png")


def parquet_bytes(tmp_path):
    pa.parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "table")
    return (tmp_path / "table").read_bytes()


def feather_bytes(tmp_path):
    pa.feather.write_feather(pa.Table.from_pylist(ROWS), tmp_path / "table")
    return (tmp_path / "table").read_bytes()


@pytest.mark.parametrize(
    ("suffix", "content"),
    [
        ("csv", 'text_prompt,seed\n"A dog, barking",5\n"He says ""hi""",6\n'),
        ("tsv", 'text_prompt\tseed\nA dog, barking\t5\n"He says ""hi"""\t6\n'),
        ("jsonl", "\n".join(json.dumps(row) for row in ROWS)),
        ("ndjson", "\n".join(json.dumps(row) for row in ROWS)),
        ("txt", "A dog, barking\n"),
        ("parquet", parquet_bytes),
        ("feather", feather_bytes),
        ("arrow", feather_bytes),
        ("ipc", feather_bytes),
    ],
)
def test_lists_of_every_kind_are_read_from_a_store(put, build, tmp_path, suffix, content):
    manifest = build(put(f"p.{suffix}", content(tmp_path) if callable(content) else content))
    prompts = [row["text_prompt"] for row in ROWS]
    assert column(manifest, "text_prompt") == (prompts[:1] if suffix == "txt" else prompts)


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_manifest_that_is_written_to_a_store_is_read_from_there(put, build, s3_bucket, suffix):
    manifest = build(put("p.txt", "a fox\n"))
    location = to_location(f"{s3_bucket}/folder/m.{suffix}")
    manifest.write(location)
    assert Manifest.read(location) == manifest


def test_a_first_frame_is_fetched_for_as_long_as_it_is_needed(put, tmp_path, s3_bucket):
    content = png(tmp_path / "a.png", "red")
    with first_frame_file(put("a.png", content)) as path:
        assert path.read_bytes() == content
    assert not path.exists()
    with pytest.raises(InvalidImage, match=r"gone\.png"), first_frame_file(f"{s3_bucket}/gone.png"):
        pass


# -- what can be wrong ---------------------------------------------------------------------------------------------


def test_every_bad_image_of_a_store_is_told_with_its_row_all_at_once(put, build):
    put("not.png", "no image")
    list_ = put("p.csv", "text_prompt,image_path\na,none.png\nb,not.png\nc,s3://no-such-bucket/a.png\nd,../../x.png\n")
    problems = told(lambda: build(list_))
    assert [problem.removeprefix(f"{list_}, ") for problem in problems] == [
        "row 1 (line 2): image_path is 'none.png', a file that does not exist; expected an image file, relative to the"
        " folder of the file that names it",
        "row 2 (line 3): image_path is 'not.png', a file that is not an image; expected an image that opens"
        " (PNG, JPEG, WEBP, BMP, TIFF, GIF)",
        "row 3 (line 4): image_path is 's3://no-such-bucket/a.png', a file that cannot be read (there is no such"
        " bucket: create it, or correct the name); expected an image file, relative to the folder of the file that names it",
        "row 4 (line 5): image_path is '../../x.png'; expected a path that stays in the bucket",
    ]


def test_text_that_is_not_utf8_is_told_of_a_store_as_of_a_disk(put, build):
    uri = put("p.csv", "text_prompt\ncafé\n".encode("cp1252"))
    (problem,) = told(lambda: build(uri))
    assert problem.startswith(f"{uri}, line 2: byte 0xe9 at offset 15 is not UTF-8")
    assert "iconv -f CP1252 -t UTF-8 p.csv > p-utf8.csv" in problem


def test_a_broken_table_of_a_store_is_named(put, build):
    (problem,) = told(lambda: build(put("p.parquet", "no table")))
    assert "p.parquet: unreadable" in problem
    assert problem.endswith("expected a Parquet file")


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("{0}/none.csv", "a file that does not exist"),
        ("{0}/folder", "a folder"),
        ("s3://none/p.csv", "a file that cannot be read (there is no such bucket"),
    ],
)
def test_a_list_that_cannot_be_read_is_told_before_anything_is(put, build, s3_bucket, name, found):
    put("folder/file", "")
    (problem,) = told(lambda: build(name.format(s3_bucket)))
    assert problem.startswith(f"command line: PROMPTS is '{name.format(s3_bucket)}', {found}")


def test_a_store_that_does_not_answer_is_told_with_what_may_be_wrong(s3_server, tmp_path):
    uri = f"s3://b/p.csv?scheme=http&endpoint_override=127.0.0.1:{free_port()}"
    (problem,) = told(lambda: JobSpec.from_options(prompts=uri, ckpt_dir=tmp_path, output_dir=tmp_path))
    assert "a file that cannot be read (the store does not answer: is its address right (AWS_ENDPOINT_URL" in problem


def test_credentials_that_are_not_accepted_are_told(put, s3_server, s3_bucket, tmp_path):
    prompts = put("p.csv", "text_prompt\na\n")
    with s3_server.refusing_credentials():
        problems = told(lambda: JobSpec.from_options(prompts=prompts, ckpt_dir=tmp_path, output_dir=f"{s3_bucket}/out"))
    assert "a file that cannot be read (access is denied: there are no credentials, or they do" in problems[0]
    assert "(the store does not know these credentials)" in problems[1]


def test_a_store_that_hangs_is_one_that_does_not_answer(s3_bucket, s3_server):
    timeouts = Timeouts(answer_s=0.5, slowest_bytes_per_s=1 << 40)
    store = ObjectStore(s3_bucket, connector("s3", s3_bucket.removeprefix("s3://")), timeouts=timeouts)
    with s3_server.frozen():
        assert "does not answer" in readable_problem(Location(store, "a.png"))
        assert "does not answer" in inspect_image(Location(store, "a.png")).found


def test_a_file_too_large_to_be_an_image_is_not_fetched(put, s3_server):
    uri = put("weights.png", bytes(1001))
    s3_server.forget_requests()
    assert inspect_image(to_location(uri), max_bytes=1000) == ImageRefusal(
        found="a file of 1,001 bytes", expected="at most 1,000 bytes"
    )
    assert s3_server.requests() == []


def test_a_dead_store_is_asked_for_a_few_images_and_not_for_each(build, tmp_path, monkeypatch):
    asked = []

    def stat(store, key):
        asked.append(key)
        time.sleep(0.01)  # so that all threads are at work
        raise StorageUnavailable(key) from OSError("HTTP error: error sending request")

    monkeypatch.setattr(ObjectStore, "stat", stat)  # the images' URIs name the store
    (tmp_path / "p.csv").write_text("text_prompt,image_path\n" + "".join(f"a,s3://b/{i}.png\n" for i in range(500)))
    problems = told(lambda: build(tmp_path / "p.csv"))
    assert len(problems) == 500
    assert all("does not answer" in problem for problem in problems)
    assert len(asked) < 100


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3:///p.csv", "a URI with a bucket, such as s3://bucket/folder"),
        ("s3://key:secret@b/p.csv", "a URI without credentials, which reports would show"),
        ("s3://b/../p.csv", "a URI without . and .. in its path"),
        (
            "ftp://b/p.csv",
            "a path, or a URI of a kind that can be read (s3, gs, gcs, abfs, abfss, hdfs, viewfs), not ftp",
        ),
    ],
)
def test_a_uri_that_cannot_be_used_is_refused_with_what_would_be_right(tmp_path, uri, expected):
    (problem,) = told(lambda: JobSpec.from_options(prompts=uri, ckpt_dir=tmp_path, output_dir=tmp_path))
    assert problem.startswith("command line: PROMPTS is ")
    assert expected in problem


# -- jobs ----------------------------------------------------------------------------------------------------------


def test_a_job_file_in_a_store_names_what_is_beside_it(put, s3_bucket, tmp_path):
    put("jobs/prompts.csv", "text_prompt\na fox\n")
    put("jobs/ckpts/file", "")
    uri = put("jobs/job.yaml", f"text_prompt: prompts.csv\nckpt_dir: ckpts\noutput_dir: {tmp_path}/out\n")
    job = JobSpec.from_yaml(to_location(uri))
    assert (str(job.prompts), str(job.ckpt_dir)) == (f"{s3_bucket}/jobs/prompts.csv", f"{s3_bucket}/jobs/ckpts")
    assert job.output_dir.local_path == tmp_path / "out"
    elsewhere = JobSpec.from_yaml(to_location(uri), {"output_dir": f"{s3_bucket}/out"})
    assert str(elsewhere.output_dir) == f"{s3_bucket}/out"


def test_a_job_that_is_written_as_json_reads_back(put, s3_bucket, tmp_path):
    put("ckpts/file", "")
    places = {"ckpt_dir": f"{s3_bucket}/ckpts", "output_dir": tmp_path / "out"}
    job = JobSpec.from_options(prompts=put("p.csv", "text_prompt\na\n"), **places)
    saved = json.loads(json.dumps(job.model_dump(mode="json")))
    assert saved["ckpt_dir"] == f"{s3_bucket}/ckpts"
    assert JobSpec.from_options(**saved) == job


def test_a_text_that_is_a_uri_is_a_list_and_never_a_prompt(put, tmp_path):
    uri = put("p.jsonl", json.dumps(ROWS[0]))
    job = JobSpec.from_options(text_prompt=uri, ckpt_dir=tmp_path, output_dir=tmp_path)
    assert (str(job.prompts), job.text_prompt) == (uri, None)


def test_an_output_folder_is_tried_and_left_as_it_was(put, s3_bucket, tmp_path):
    uri = f"{s3_bucket}/out"
    job = JobSpec.from_options(prompts=put("p.csv", "text_prompt\na\n"), ckpt_dir=tmp_path, output_dir=uri)
    assert str(job.output_dir) == uri
    assert list(job.output_dir.files()) == []


def test_folders_of_a_store_that_cannot_be_used_are_told_in_plain_words(put, tmp_path, s3_bucket):
    problems = told(
        lambda: JobSpec.from_options(
            prompts=put("p.csv", "text_prompt\na\n"), ckpt_dir=f"{s3_bucket}/none", output_dir="s3://no-such-bucket/out"
        )
    )
    assert problems == [
        f"command line: --ckpt-dir is '{s3_bucket}/none', which is not a folder; expected a checkpoint folder that exists",
        "command line: --out is 's3://no-such-bucket/out' (there is no such bucket: create it, or correct the name);"
        " expected a folder that can be written to",
    ]


PROFILE = (
    "name: x\ndevices:\n  big:\n    count: 2\n    vendor: nvidia\n    memory_gb: 80\n    load_gb_per_s: 2\n"
    "    tflops: {encode_text: 1, encode_first_frame: 1, denoise: 1, decode: 1}\n"
)


def test_a_cluster_profile_is_read_from_a_store(put, s3_bucket):
    assert len(virtual_devices(read_profile(put("c.yaml", PROFILE)))) == 2
    (problem,) = told(lambda: read_profile(f"{s3_bucket}/none.yaml"))
    assert "none.yaml: a file that does not exist" in problem


# -- the command line ----------------------------------------------------------------------------------------------


def call(*arguments):
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.stderr, result.stdout


def test_plan_takes_uris(put):
    code, _, text = call("plan", put("p.csv", "text_prompt\na\nb\n"), "--cluster", put("c.yaml", PROFILE), "--json")
    assert (code, json.loads(text)["clips"]) == (0, 2)


def test_every_bad_uri_of_a_command_is_told_plainly(put, s3_bucket):
    code, message, _ = call(
        "render",
        f"{s3_bucket}/p.csv",
        "--ckpt-dir",
        "s3:///c",
        "--out",
        "s3://none/o",
        "--image-path",
        f"{s3_bucket}/i",
    )
    assert code == 2
    for words in ("PROMPTS is", "--ckpt-dir is 's3:///c'", "there is no such bucket: create it", "--image-path is"):
        assert words in message


@pytest.mark.parametrize(
    "command",
    [
        ["retry", "s3://key:secret@b/out"],
        ["doctor", "--ckpt-dir", "s3://key:secret@b/ckpts"],
        ["plan", "p.csv", "--cluster", "s3://key:secret@b/c.yaml"],
        ["render", "s3://key:secret@b/job.yaml"],
    ],
)
def test_a_uri_with_credentials_is_refused_by_every_command(command):
    code, message, _ = call(*command)
    assert code == 2
    assert "a URI without credentials" in message
    assert "secret" not in message
