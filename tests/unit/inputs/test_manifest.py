import json
import struct
import subprocess
import sys

import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovi.config import Architecture, SolverName
from ovi_ray.inputs.columns import SIDE_COLUMNS, SIZE_COLUMN
from ovi_ray.inputs.first_frames import ImageRefusal, inspect_image, inspect_images
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import MANIFEST_SCHEMA, Manifest, build_manifest, clip_id
from ovi_ray.inputs.params import PARAM_FIELDS
from ovi_ray.storage.paths import to_location
from tests.support.lists import write_table
from tests.support.params import another_value

quick = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def build(tmp_path):
    """A manifest of a list: text of a file, or rows written as JSON Lines."""
    (tmp_path / "ckpts").mkdir()

    def build(content, name="prompts.csv", weights="w", numerics="bfloat16", **options):
        path = tmp_path / name
        if isinstance(content, str):
            path.write_bytes(content.encode())
        elif content is not None:
            path = tmp_path / "prompts.jsonl"
            path.write_text("\n".join(json.dumps(row) for row in content))
        job = JobSpec.from_options(prompts=path, ckpt_dir=tmp_path / "ckpts", output_dir=tmp_path / "out", **options)
        return build_manifest(job, Architecture(), weights=lambda _: weights, numerics=numerics)

    return build


def column(manifest, name):
    return manifest.table.column(name).to_pylist()


def save_image(path, size=(64, 48), **options):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, "red").save(path, **options)
    return path


# -- lists of every kind -------------------------------------------------------------------------------------------


def test_a_list_without_overrides_takes_everything_from_the_job(build):
    manifest = build("text_prompt\nA dog\n", sample_steps=7, solver_name="euler", model_name="960x960_5s")
    (row,) = manifest.table.to_pylist()
    assert manifest.table.schema == MANIFEST_SCHEMA
    assert (row["row"], row["repeat"], row["text_prompt"]) == (1, 0, "A dog")
    assert (row["sample_steps"], row["solver_name"], row["model_name"]) == (7, "euler", "960x960_5s")
    assert (row["height"], row["width"]) == (row["video_frame_height"], row["video_frame_width"]) == (704, 1280)
    assert (row["video_latent_length"], row["audio_latent_length"]) == (31, 157)
    assert manifest.notes == ()


def test_every_kind_of_list_gives_the_same_clips(build, tmp_path):
    prompts, seeds = ["A dog, barking", 'He says "hi"'], [5, 6]
    expected = column(build([{"text_prompt": p, "seed": s} for p, s in zip(prompts, seeds, strict=True)]), "clip_id")
    table = pa.table({"text_prompt": prompts, "seed": seeds})
    pa.parquet.write_table(table, tmp_path / "p.parquet")
    pa.feather.write_feather(table, tmp_path / "p.feather")
    with pa.ipc.new_stream(tmp_path / "p.arrow", table.schema) as stream:
        stream.write_table(table)
    for content, name in (
        ('text_prompt,seed\n"A dog, barking",5\n"He says ""hi""",6\n', "p.csv"),
        ('\ufefftext_prompt,seed\r\n"A dog, barking",5\r\n\r\n"He says ""hi""", 6.0 \r\n', "excel.csv"),
        ('text_prompt\tseed\nA dog, barking\t5\n"He says ""hi"""\t6\n', "p.tsv"),
        (None, "p.parquet"),
        (None, "p.feather"),
        (None, "p.arrow"),
    ):
        assert column(build(content, name), "clip_id") == expected, name


def test_plain_text_is_a_prompt_a_line(build):
    manifest = build('A dog, "barking"\n\n  # 2 cats\r\n', "prompts.txt")
    assert column(manifest, "text_prompt") == ['A dog, "barking"', "  # 2 cats"]
    assert column(manifest, "row") == [1, 2]


def test_a_quoted_prompt_may_span_lines(build):
    assert column(build('text_prompt\n"A dog.\nAudio: rain"\n'), "text_prompt") == ["A dog.\nAudio: rain"]


def test_a_single_prompt_is_a_list_of_one(tmp_path):
    job = JobSpec(text_prompt="A dog", ckpt_dir=tmp_path, output_dir=tmp_path)
    manifest = build_manifest(job, Architecture(), weights=lambda _: "w", numerics="n")
    assert column(manifest, "text_prompt") == ["A dog"]


def test_any_parameter_is_a_column_and_a_blank_cell_takes_the_jobs_value(build):
    manifest = build(
        "text_prompt,model_name,video_frame_height_width,sample_steps,solver_name,shift,slg_layer\n"
        "one,960x960_10s,512x992,3, dpm++ ,1.5,0\ntwo,,,,,,\n",
        sample_steps=9,
    )
    assert column(manifest, "model_name") == ["960x960_10s", "720x720_5s"]
    assert column(manifest, "sample_steps") == [3, 9]
    assert column(manifest, "solver_name") == [SolverName.DPMPP, SolverName.UNIPC]
    assert column(manifest, "shift") == [1.5, 5.0]
    assert column(manifest, "slg_layer") == [0, 11]
    assert column(manifest, "video_latent_length") == [61, 31]
    assert column(manifest, "height") == [704, 544]


@pytest.mark.parametrize("size", ["704x1280", "704 X 1280", "[704, 1280]", "(704,1280)", "704 1280", [704, 1280]])
def test_sizes_are_read_as_people_write_them(build, size):
    manifest = build([{"text_prompt": "A dog", "video_frame_height_width": size}], video_frame_height_width=(512, 992))
    assert (column(manifest, "video_frame_height"), column(manifest, "video_frame_width")) == ([704], [1280])


def test_an_empty_negative_prompt_is_a_value_where_the_file_has_types(build):
    rows = [{"text_prompt": "a", "video_negative_prompt": ""}, {"text_prompt": "b"}]
    assert column(build(rows, video_negative_prompt="blur"), "video_negative_prompt") == ["", "blur"]
    in_csv = build("text_prompt,video_negative_prompt\na,\n", video_negative_prompt="blur")
    assert column(in_csv, "video_negative_prompt") == ["blur"]


def test_columns_of_the_users_own_are_carried_along_as_text(build):
    manifest = build([{"text_prompt": "a", "meta_shot": 12}, {"text_prompt": "b"}])
    assert column(manifest, "meta_shot") == ["12", None]


# -- images --------------------------------------------------------------------------------------------------------


def test_images_are_found_beside_the_list_and_set_the_size(build, tmp_path):
    path = save_image(tmp_path / "pngs" / "a.png", (640, 480))
    manifest = build("text_prompt,image_path\na,pngs/a.png\nb,\n")
    assert column(manifest, "image_path") == [str(path), None]
    assert column(manifest, "height") == [608, 544]
    assert column(manifest, "width") == [832, 960]


def test_an_image_taken_sideways_has_the_size_that_it_is_seen_at(build, tmp_path):
    save_image(tmp_path / "a.jpg", (640, 480), exif=Image.Exif())
    turned = Image.Exif()
    turned[0x0112] = 6
    save_image(tmp_path / "b.jpg", (640, 480), exif=turned)
    manifest = build("text_prompt,image_path\na,a.jpg\nb,b.jpg\n")
    assert column(manifest, "height") == [608, 832]


def test_a_turned_tiff_has_the_size_of_the_same_picture_as_jpeg(build, tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    for name in ("a.tif", "a.jpg", "a.png", "a.webp"):
        save_image(tmp_path / name, (640, 480), exif=turned)
    manifest = build("text_prompt,image_path\na,a.tif\na,a.jpg\na,a.png\na,a.webp\n")
    assert set(zip(column(manifest, "height"), column(manifest, "width"), strict=True)) == {(832, 608)}


def test_how_an_image_is_read_is_noted_with_its_rows(build, tmp_path):
    Image.new("RGBA", (64, 48), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    save_image(tmp_path / "plain.png")
    manifest = build("text_prompt,image_path\na,plain.png\nb,clear.png\nc,clear.png\n")
    assert manifest.notes == ("rows 2 and 3 have an image with transparent parts, which are shown on white",)


def test_ids_of_images_that_were_read_rightly_stay_and_those_of_others_change(build, first_frame_path, tmp_path):
    (tmp_path / "plain.png").write_bytes(first_frame_path.read_bytes())
    (tmp_path / "grey16.tif").write_bytes(GREY_16)
    plain, deep = column(build("text_prompt,image_path,seed\na,plain.png,1\na,grey16.tif,1\n"), "clip_id")
    assert plain == "75e8784d5975d1a4074d"  # as in version 0.1, which read the image as now
    assert deep != "0fbaa9bf7b071ab83d7e"  # of version 0.1, where the image came out white


def test_an_image_counts_as_converted_only_where_its_pixels_changed(first_frame_path, tmp_path):
    with Image.open(first_frame_path) as image:
        image.convert("RGBA").save(tmp_path / "opaque.png")
        image.convert("L").point(lambda level: level * 256, "I").convert("I;16").save(tmp_path / "grey16.png")
    facts = inspect_images(to_location(tmp_path / name) for name in ("opaque.png", "grey16.png"))
    assert [image.is_converted for image in facts.values()] == [False, True]


TIFF_TAGS = {256: 16, 257: 16, 258: 16, 259: 1, 262: 1, 273: 122, 277: 1, 278: 16, 279: 512}
GREY_16 = (
    struct.pack("<4sIH", b"II*\0", 8, len(TIFF_TAGS))
    + b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in TIFF_TAGS.items())
    + bytes(4)
    + struct.pack("<256H", *range(0, 65_536, 256))
)
"""A TIFF of 16-bit grey, a ramp of 16 x 16 pixels."""


def test_the_jobs_image_serves_rows_without_one(build, tmp_path):
    path = save_image(tmp_path / "a.png")
    manifest = build("text_prompt\na\n", image_path=path, mode="i2v")
    assert column(manifest, "image_path") == [str(path)]


def test_mode_t2v_ignores_images_and_notes_it(build):
    manifest = build("text_prompt,image_path\na,none.png\nb,\n", mode="t2v")
    assert column(manifest, "image_path") == [None, None]
    assert manifest.notes == ("mode t2v ignores the image of 1 row",)


# -- ids -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAM_FIELDS)
def test_every_sampling_parameter_is_part_of_the_clip_id(build, name):
    row, value = {"text_prompt": "A dog"}, another_value(name)
    default, of_row = build([row]), build([row | {name: value}])
    of_job = build([row], **{name: value}) if name != "seed" else of_row  # seeds are derived from the job's
    names = SIDE_COLUMNS if name == SIZE_COLUMN else (name,)
    assert of_row.table.select(names) == of_job.table.select(names) != default.table.select(names)
    assert column(of_row, "clip_id") == column(of_job, "clip_id") != column(default, "clip_id")


ALL_CHANGES = {
    "text_prompt": "A cat",
    "model_name": "960x960_5s",
    "video_frame_height_width": "512x992",
    "seed": 101,
    "sample_steps": 49,
    "solver_name": "euler",
    "shift": 5.000001,
    "video_guidance_scale": 4.5,
    "audio_guidance_scale": 3.5,
    "slg_layer": 0,
    "video_negative_prompt": "",
    "audio_negative_prompt": "x",
    "quality": "fast",
    "image_path": "a.png",
}


def test_whatever_changes_a_clip_changes_its_id(build, tmp_path):
    save_image(tmp_path / "a.png")
    base = {"text_prompt": "A dog", "seed": 100}
    ids = [column(build([base | {name: value}]), "clip_id")[0] for name, value in ALL_CHANGES.items()]
    ids += [column(build([base], **fixed), "clip_id")[0] for fixed in ({}, {"weights": "v"}, {"numerics": "float32"})]
    assert len(set(ids)) == len(ALL_CHANGES) + 3
    assert all(len(id_) == 20 and set(id_) <= set("0123456789abcdef") for id_ in ids)


def test_what_does_not_change_a_clip_does_not_change_its_id(build, tmp_path):
    save_image(tmp_path / "a.png")
    save_image(tmp_path / "pngs" / "same.png")
    first = build("text_prompt,image_path,seed\nA dog <AUDCAP>rain<ENDAUDCAP>,a.png,5\n")
    moved = build(
        "meta_x,text_prompt,image_path,seed,shift,video_frame_height_width\n"
        "1,first,,1,,\n2,A  dog Audio: rain,pngs/same.png,5.0,5,512 992\n"
    )
    assert column(moved, "clip_id")[1] == column(first, "clip_id")[0]


def test_prompts_with_one_beginning_have_different_ids(build):
    assert len(set(column(build(f"text_prompt,seed\n{'x' * 60}a,1\n{'x' * 60}b,1\n"), "clip_id"))) == 2


def test_the_id_of_a_clip_never_changes_between_releases(build):
    manifest = build(
        "text_prompt,seed\nA dog. Audio: barking,100\n", solver_name="euler", video_negative_prompt="blur  &amp; noise"
    )
    assert column(manifest, "clip_id") == ["9eca724b647f7d7e5a42"]


def test_an_id_is_the_same_in_every_process_and_release():
    content = {"prompt": "A dog", "seed": 2**62, "shift": 0.1, "image_sha256": None}
    code = f"from ovi_ray.inputs.manifest import clip_id; print(clip_id({dict(reversed(content.items()))!r}))"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == clip_id(content) == "ba254b14ea4da0e8e928"


@quick
@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "b"]), st.integers(0, 3), st.sampled_from([1.0, 2.5])), min_size=1, max_size=12
    )
)
def test_ids_are_equal_exactly_where_clips_are(build, rows):
    manifest = build([{"text_prompt": p, "seed": seed, "shift": shift} for p, seed, shift in rows])
    assert len(manifest) == len(set(rows))
    assert len(set(column(manifest, "clip_id"))) == len(manifest)


# -- notes ---------------------------------------------------------------------------------------------------------


def test_equal_clips_are_rendered_once_and_noted(build):
    manifest = build("text_prompt,seed\na,1\nb,1\na,1\n")
    assert column(manifest, "row") == [1, 2]
    assert "1 clip is identical to an earlier one and rendered once: row 3 equals row 1" in manifest.notes


def test_rows_that_repeat_a_prompt_are_rendered_with_their_own_seeds_and_noted(build):
    manifest = build("text_prompt\na\nb\na\n")
    assert len(manifest) == 3
    assert manifest.notes[0].startswith("1 row repeats the prompt and image of an earlier row (row 3 those of row 1)")


def test_rewritten_audio_tags_are_noted_with_an_example(build):
    manifest = build("text_prompt\na Audio: rain\nb\nc Audio: wind\n")
    assert column(manifest, "prompt")[0] == "a <AUDCAP>rain<ENDAUDCAP>"
    assert manifest.notes == (
        "rows 1 and 3 have an audio tag in another form than the model's, which is rewritten: "
        "'Audio: rain' became '<AUDCAP>rain<ENDAUDCAP>'",
    )


def test_extra_spaces_are_noted(build):
    assert build("text_prompt\na\n b  c\n").notes == ("row 2 has extra spaces or line breaks, which are ignored",)


def test_a_prompt_that_is_right_for_its_model_is_rendered_as_given_without_a_note(build):
    prompts = [
        "A man says <S>Audio: check, one two<E> and leaves. <AUDCAP>male voice<ENDAUDCAP>",
        'A sign reads "Radio Audio: 5 dollars". A man sings. <AUDCAP>rain<ENDAUDCAP>',
        "She says &lt;S&gt;Hi&lt;E&gt; ＜AUDCAP＞rain＜ENDAUDCAP＞",
    ]
    manifest = build([{"text_prompt": prompt} for prompt in prompts])
    assert column(manifest, "prompt") == prompts
    assert manifest.notes == ()


def test_escaped_and_full_width_tags_reach_each_model_in_its_own_form(build):
    escaped, wide = "A fox. &lt;AUDCAP&gt;rain&lt;ENDAUDCAP&gt;", "A fox. ＜AUDCAP＞wind＜ENDAUDCAP＞"
    rows = [{"text_prompt": text, "model_name": "960x960_5s"} for text in (escaped, wide)]
    manifest = build([*rows, {"text_prompt": "A fox. Audio：rain"}])
    assert column(manifest, "prompt") == ["A fox. Audio: rain", "A fox. Audio: wind", "A fox. <AUDCAP>rain<ENDAUDCAP>"]


def test_malformed_tags_are_noted_by_kind_with_their_rows_and_how_they_were_read(build):
    manifest = build(
        "text_prompt\nA man. <AUDCAP>a song\nA man. <audcap>a hymn<endaudcap>\nHe says <S>hello and leaves.\n"
        "A man. <AUDCAP>rain</AUDCAP>\nA <b>man</b>\nA fox\n"
    )
    assert column(manifest, "prompt") == [
        "A man. <AUDCAP>a song<ENDAUDCAP>",
        "A man. <AUDCAP>a hymn<ENDAUDCAP>",
        "He says <S>hello and leaves.<E>",
        "A man. <AUDCAP>rain<ENDAUDCAP>",
        "A <b>man</b>",
        "A fox",
    ]
    subjects = [note.partition(":")[0] for note in manifest.notes]
    assert subjects == [
        "rows 2 and 4 have tags that are misspelt",
        "rows 1 and 3 have tags that are not closed",
        "row 5 has tags that the model does not know",
    ]
    assert "'</AUDCAP>' read as <ENDAUDCAP> (row 4)" in manifest.notes[0]


def test_many_rows_of_one_kind_are_counted_in_one_note(build):
    rows = [{"text_prompt": f"{number} dogs <audcap>barking<endaudcap>"} for number in range(1_300)]
    (note,) = build(rows).notes
    assert note.startswith("rows 1, 2, 3 and 1,297 more have tags that are misspelt")


# -- writing and reading -------------------------------------------------------------------------------------------


@quick
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=1, max_size=5),
    seed=st.integers(0, 2**62),
    suffix=st.sampled_from(["arrow", "parquet"]),
)
def test_a_manifest_that_is_written_and_read_is_the_same(build, tmp_path, texts, seed, suffix):
    manifest = build([{"text_prompt": text, "meta_n": "1"} for text in texts], seed=seed)
    manifest.write(tmp_path / f"m.{suffix}")
    assert Manifest.read(tmp_path / f"m.{suffix}") == manifest
    assert [path.name for path in tmp_path.glob(".*tmp")] == []


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_written_manifest_is_a_prompt_list_of_the_same_clips(build, tmp_path, suffix):
    save_image(tmp_path / "a.png")
    manifest = build(
        "text_prompt,image_path,model_name,video_frame_height_width,shift,meta_x\n"
        "a  Audio: b,a.png,,,2,s\nb,,960x960_5s,512x992,,\n",
        video_negative_prompt="",
        each_example_n_times=2,
    )
    manifest.write(tmp_path / f"m.{suffix}")
    again = build(None, f"m.{suffix}")
    assert column(again, "clip_id") == column(manifest, "clip_id")
    assert column(again, "meta_x") == column(manifest, "meta_x")


# -- other tools, other versions ---------------------------------------------------------------------------------------


@pytest.fixture
def written(build, tmp_path):
    """A manifest with cells of every kind, and its file."""
    save_image(tmp_path / "a.png")
    manifest = build(
        "text_prompt,image_path,video_frame_height_width,meta_x\na,a.png,,s\nb,,512x992,\n", each_example_n_times=2
    )
    manifest.write(tmp_path / "m.parquet")
    return manifest, tmp_path / "m.parquet"


def test_a_manifest_has_only_columns_that_every_tool_for_tables_has(written, tmp_path):
    manifest, _ = written
    assert not any(pa.types.is_nested(field.type) for field in manifest.table.schema)
    assert {str(manifest.table.schema.field(name).type) for name in ("height", "width", *SIDE_COLUMNS)} == {"int32"}
    pyarrow.csv.write_csv(manifest.table, tmp_path / "m.csv")
    again = pyarrow.csv.read_csv(tmp_path / "m.csv")
    assert again.column("video_frame_width").to_pylist() == [1280, 1280, 992, 992]


def test_a_manifest_saved_as_csv_is_a_prompt_list_of_the_same_clips(written, build, tmp_path):
    manifest, _ = written
    pyarrow.csv.write_csv(manifest.table, tmp_path / "m.csv")
    assert column(build(None, "m.csv"), "clip_id") == column(manifest, "clip_id")


@pytest.mark.parametrize("suffix", ["arrow", "parquet"])
def test_a_manifest_of_an_earlier_version_is_read_with_rows_from_1_and_the_size_in_two_columns(
    written, build, tmp_path, suffix
):
    manifest, _ = written
    table = manifest.table
    sizes = [list(pair) for pair in zip(*(column(manifest, name) for name in SIDE_COLUMNS), strict=True)]
    old = table.drop_columns(["line", *SIDE_COLUMNS]).append_column(
        SIZE_COLUMN, pa.array(sizes, pa.list_(pa.int32(), 2))
    )
    old = old.set_column(1, "row", pa.array([row - 1 for row in column(manifest, "row")]))
    write_table(tmp_path / f"old.{suffix}", old.replace_schema_metadata({"ovi_ray.notes": '["a note"]'}))
    read = Manifest.read(tmp_path / f"old.{suffix}")
    assert read.notes == ("a note",)
    assert read.table.select([*SIDE_COLUMNS, "row", "meta_x"]) == table.select([*SIDE_COLUMNS, "row", "meta_x"])
    assert column(build(None, f"old.{suffix}"), "clip_id") == column(manifest, "clip_id")


@pytest.mark.parametrize(
    ("pointer", "fetch"),
    [
        ("version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n", "git lfs pull"),
        ("/annex/objects/SHA256E-s1--abc.png\n", "git annex get"),
    ],
)
def test_a_pointer_in_place_of_an_image_is_refused_with_how_to_fetch_it(pointer, fetch, tmp_path):
    (tmp_path / "fox.png").write_text(pointer)
    refusal = inspect_image(to_location(tmp_path / "fox.png"))
    assert isinstance(refusal, ImageRefusal)
    assert fetch in refusal.expected
