import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ovi.config import Architecture
from ovi_ray.errors import InputError
from ovi_ray.inputs.bad_rows import split_bad_rows
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest
from ovi_ray.inputs.prompt_lists import read_prompt_list
from ovi_ray.storage.paths import to_location


@pytest.fixture
def problems_of(tmp_path):
    """The problems of a list, given as the bytes or text of a file or as rows to write as JSON Lines."""

    def problems_of(content, name="prompts.csv", **options):
        if isinstance(content, list):
            name, content = "prompts.jsonl", "\n".join(json.dumps(row) for row in content)
        if content is not None:
            (tmp_path / name).write_bytes(content.encode() if isinstance(content, str) else content)
        job = JobSpec(prompts=tmp_path / name, ckpt_dir=tmp_path, output_dir=tmp_path, **options)
        with pytest.raises(InputError) as caught:
            build_manifest(job, Architecture(), weights=lambda _: "w", numerics="n")
        problems = caught.value.problems
        assert all(problem.file == str(tmp_path / name) for problem in problems)
        assert all(str(problem).count("\n") == 0 for problem in problems)
        return problems

    return problems_of


def places(problems):
    return [(problem.row, problem.line, problem.field) for problem in problems]


def test_every_bad_cell_of_every_row_is_reported_with_row_line_value_and_what_is_accepted(problems_of):
    problems = problems_of(
        "text_prompt,seed,sample_steps,solver_name,model_name,video_frame_height_width,shift,image_path\n"
        '"fine,\non two lines",1,2,unipc,720x720_5s,704x1280,1,\n'
        ",1.5,0,unipcc,720x720,0x5,-1,none.png\n"
        "fine,-1,1.5,,,704,nan,\n"
        "fine,x,99999999999,,,7x4000,0,\n"
    )
    models = "one of 720x720_5s, 960x960_5s, 960x960_10s; did you mean '720x720_5s'?"
    solvers = "one of unipc, dpm++, euler; did you mean 'unipc'?"
    seeds, sizes = "an integer from 0 to 2**63-1", "two positive integers [height, width]"
    found = {(problem.row, problem.line, problem.field): (problem.value, problem.expected) for problem in problems}
    assert found.pop((2, 4, "text_prompt"))[0] == "empty"
    assert found.pop((2, 4, "image_path"))[0] == "'none.png', a file that does not exist"
    assert found == {
        (2, 4, "seed"): ("'1.5'", seeds),
        (2, 4, "sample_steps"): ("'0'", "an integer of at least 1"),
        (2, 4, "solver_name"): ("'unipcc'", solvers),
        (2, 4, "model_name"): ("'720x720'", models),
        (2, 4, "video_frame_height_width"): ("'0x5'", sizes),
        (2, 4, "shift"): ("'-1'", "a positive number"),
        (3, 5, "seed"): ("'-1'", seeds),
        (3, 5, "sample_steps"): ("'1.5'", "an integer of at least 1"),
        (3, 5, "video_frame_height_width"): ("'704'", sizes),
        (3, 5, "shift"): ("'nan'", "a positive number"),
        (4, 6, "seed"): ("'x'", seeds),
        (4, 6, "sample_steps"): ("'99999999999'", "an integer of at most 2147483647"),
        (4, 6, "video_frame_height_width"): ("'7x4000'", "a longer side of at most 8 times the shorter one"),
        (4, 6, "shift"): ("'0'", "a positive number"),
    }
    assert len(problems) == 16
    assert [problem.row for problem in problems] == sorted(problem.row for problem in problems)


@pytest.mark.parametrize("prompt", ["\u200b", "&#8203;", "\ufeff \u2060", "&nbsp;"])
def test_a_prompt_that_shows_nothing_is_refused(problems_of, prompt):
    (problem,) = problems_of([{"text_prompt": prompt}])
    assert (problem.row, problem.field) == (1, "text_prompt")


def test_a_cell_that_is_too_long_is_told_with_the_limit(problems_of):
    (problem,) = problems_of(f"text_prompt,seed\n{'A fox ' * 30_000},1\n")
    assert (problem.row, problem.line) == (1, 2)
    assert "at most 131,072 characters" in problem.expected


# -- columns -------------------------------------------------------------------------------------------------------


def test_a_list_without_prompts_names_the_column_that_was_meant(problems_of):
    unknown, missing = problems_of("prompt,seed\nA dog,1\n")
    assert (unknown.field, unknown.value) == ("prompt", "an unknown column")
    assert unknown.expected.endswith("did you mean 'text_prompt'?")
    assert (missing.field, missing.expected) == (None, "a column text_prompt")


def test_an_unknown_column_is_reported_together_with_bad_rows(problems_of):
    column, cell = problems_of("text_prompt,sample_step,seed\nA dog,5,x\n")
    assert (column.row, column.field) == (None, "sample_step")
    assert column.expected.endswith("did you mean 'sample_steps'?")
    assert (cell.row, cell.field) == (1, "seed")


@pytest.mark.parametrize(
    ("header", "value"),
    [
        ("text_prompt,seed,seed", "two columns are named 'seed'"),
        (",text_prompt,seed", "column 1 has no name"),
    ],
)
def test_a_bad_header_is_reported_with_its_line(problems_of, header, value):
    (problem,) = problems_of(f"{header}\na,1,2\n")
    assert (problem.line, problem.value) == (1, value)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "line", "value"),
    [
        ("", "a.csv", None, "an empty file"),
        ("text_prompt\n", "a.csv", None, "no rows"),
        ("\n \n", "a.txt", None, "no rows"),
        ("", "a.jsonl", None, "no rows"),
        ("a\n", "a.xls", None, "a file of type '.xls'"),
        ("text_prompt\nA dog\x00\n", "a.csv", 2, "a NUL byte, as in UTF-16 or binary files"),
        ("text_prompt\nA dog\n".encode("utf-16-le"), "a.csv", 1, "a NUL byte, as in UTF-16 or binary files"),
    ],
)
def test_a_file_that_is_not_a_list_is_reported_with_its_line(problems_of, content, name, line, value):
    (problem,) = problems_of(content, name)
    assert (problem.line, problem.value) == (line, value)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_broken_table_is_reported_with_the_format_that_its_name_promises(problems_of, name):
    (problem,) = problems_of("not a table", name)
    assert problem.value.startswith("unreadable (")
    assert ("Parquet" if name == "a.parquet" else "Arrow IPC") in problem.expected


@pytest.mark.parametrize(
    ("content", "name", "line", "value", "encoding"),
    [
        ("text_prompt\nA café\n".encode("cp1252"), "a.csv", 2, "byte 0xe9 at offset 17", "CP1252"),
        ("A dog\nA café\n".encode("cp1252"), "a.txt", 2, "byte 0xe9 at offset 11", "CP1252"),
        ("text_prompt\nA dog\n".encode("utf-16"), "a.csv", 1, "UTF-16 text", "UTF-16"),
    ],
)
def test_text_that_is_not_utf8_is_reported_with_the_command_that_converts_it(
    problems_of, tmp_path, content, name, line, value, encoding
):
    (problem,) = problems_of(content, name)
    assert problem.line == line
    assert problem.value.startswith(value)
    copy = name.replace("a.", "a-utf8.")
    assert f"iconv -f {encoding} -t UTF-8 {tmp_path / name} > {tmp_path / copy}" in problem.expected


@pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
def test_a_list_that_does_not_exist_is_named(problems_of, name):
    (problem,) = problems_of(None, name)
    assert problem.value == "a file that does not exist"


def test_rows_with_too_many_or_too_few_fields_are_reported_with_the_other_problems(problems_of):
    many, few, cell = problems_of("text_prompt,seed\nA dog, barking,1\nA cat\nA cow,x\n")
    assert (many.row, many.line, many.value) == (1, 2, "3 fields")
    assert many.expected == "2, as in the header; a cell that holds the separator needs quotes"
    assert (few.row, few.value) == (2, "1 field")
    assert (cell.row, cell.line, cell.field) == (3, 4, "seed")


@pytest.mark.parametrize("broken", ['"never closed,1\nb,2\n', '"closed"early,1\n'])
def test_broken_quotes_are_reported_with_the_line_where_the_row_starts(problems_of, broken):
    cell, quotes = sorted(problems_of(f"text_prompt,seed\na,x\n{broken}"), key=lambda problem: problem.line)
    assert (cell.field, quotes.field, quotes.line) == ("seed", None, 3)
    assert quotes.value.startswith("a row that cannot be read")


def test_every_row_with_broken_quotes_is_reported_and_the_rows_between_them_are_checked(problems_of):
    problems = problems_of('text_prompt,seed\n"a"b,1\n\nc,x\n"She says \\"hi\\"",2\n"open,3\nd,y\n')
    assert places(problems) == [(None, 6, None), (1, 2, None), (2, 4, "seed"), (3, 5, None), (5, 7, "seed")]


def test_a_quote_that_may_enclose_other_rows_cannot_be_left_out_as_one_bad_row(tmp_path):
    (tmp_path / "a.csv").write_text('text_prompt,seed\na,1\n"open,2\nb,3\n')
    prompts = read_prompt_list(to_location(tmp_path / "a.csv"))
    with pytest.raises(InputError) as caught:
        split_bad_rows(prompts, prompts.problems)
    assert places(caught.value.problems) == [(None, 3, None)]


def test_every_bad_line_of_json_lines_is_reported(problems_of):
    content = (
        '{"text_prompt": "a"}\n\n{"text_prompt": \n[1]\n{"seed": 1, "seed": 2}\n{"text_prompt": "b", "seed": true}\n'
    )
    broken, array, twice, cell = problems_of(content, "a.jsonl")
    assert places([broken, array, twice, cell]) == [(2, 3, None), (3, 4, None), (4, 5, None), (5, 6, "seed")]
    assert broken.value.startswith("not JSON (column")
    assert array.value == "a JSON list"
    assert twice.value == "the key 'seed' twice"
    assert cell.value == "true"


# -- cells with types ----------------------------------------------------------------------------------------------


def test_cells_of_the_wrong_type_are_reported(problems_of):
    problems = problems_of(
        [
            {"text_prompt": 5},
            {"text_prompt": "\ud800"},
            {"text_prompt": "a\x00"},
            {"text_prompt": "&nbsp; "},
            {"text_prompt": "a", "sample_steps": 1},
            {"text_prompt": "a", "sample_steps": True},
            {"text_prompt": "a", "video_frame_height_width": [1, 2, 3]},
            {"text_prompt": "a", "shift": {}},
            {"text_prompt": "a", "video_negative_prompt": 1},
            {"text_prompt": "a", "solver_name": ["unipc"]},
            {"text_prompt": "a", "image_path": 1},
        ]
    )
    assert [problem.row for problem in problems] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11]


def test_cells_of_a_parquet_file_are_checked_by_row(problems_of, tmp_path):
    table = pa.table({"text_prompt": ["a", None], "seed": [1.0, 2.5]})
    pa.parquet.write_table(table, tmp_path / "a.parquet")
    prompt, seed = problems_of(None, "a.parquet")
    assert (prompt.row, prompt.line, prompt.field, prompt.value) == (2, None, "text_prompt", "empty")
    assert (seed.row, seed.field, seed.value) == (2, "seed", "2.5")


def test_a_seed_that_exceeds_64_bits_in_a_repeat_is_reported(problems_of):
    (problem,) = problems_of("text_prompt,seed\na,9223372036854775807\n", each_example_n_times=2)
    assert (problem.row, problem.field, problem.value) == (1, "seed", "9223372036854775807")


# -- images --------------------------------------------------------------------------------------------------------


def test_every_unusable_image_is_reported_with_its_row(problems_of, tmp_path):
    Image.effect_noise((64, 64), 50).save(tmp_path / "whole.png")
    (tmp_path / "truncated.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    (tmp_path / "text.png").write_text("not an image")
    (tmp_path / "folder").mkdir()
    Image.new("1", (40_000, 8)).save(tmp_path / "wide.png")
    Image.new("1", (12_000, 12_000)).save(tmp_path / "large.png")
    Image.new("1", (16_000, 16_000)).save(tmp_path / "bomb.png")
    Image.new("1", (900, 100)).save(tmp_path / "strip.png")
    names = ["whole", "none", "text", "truncated", "wide", "large", "bomb", "strip"]
    rows = "".join(f"a {name},{name}.png\n" for name in names)
    problems = problems_of(f"text_prompt,image_path\n{rows}a,folder\n")
    assert [(problem.row, problem.field) for problem in problems] == [(row, "image_path") for row in range(2, 10)]
    found = {problem.value.partition(", ")[0].strip("'"): problem for problem in problems}
    for name, value, expected in (
        ("none.png", "a file that does not exist", "an image file, relative to the folder"),
        ("text.png", "a file that is not an image", "an image that opens (PNG, JPEG"),
        ("truncated.png", "a damaged or truncated image", "an image that opens"),
        ("wide.png", "40,000 pixels wide and 8 high", "sides of at most 16,384 pixels"),
        ("large.png", "12,000 pixels wide and 12,000 high", "at most 89,478,485 pixels"),
        ("bomb.png", "an image of more than 178,956,970 pixels", "at most 89,478,485 pixels"),
        ("strip.png", "900 pixels wide and 100 high", "a longer side of at most 8 times"),
        ("folder", "a folder", "an image file"),
    ):
        assert value in found[name].value
        assert found[name].expected.startswith(expected)


def test_mode_i2v_requires_an_image_in_every_row(problems_of):
    problems = problems_of("text_prompt\na\nb\n", mode="i2v")
    assert [(problem.row, problem.field, problem.value) for problem in problems] == [
        (1, "image_path", "empty"),
        (2, "image_path", "empty"),
    ]


def test_another_table_is_refused_as_a_manifest(tmp_path):
    path = tmp_path / "a.parquet"
    pa.parquet.write_table(pa.table({"text_prompt": ["a"]}), path)
    with pytest.raises(InputError) as caught:
        Manifest.read(path)
    assert [(problem.file, problem.field) for problem in caught.value.problems] == [(str(path), None)]
