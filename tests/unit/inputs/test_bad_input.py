import json

import pyarrow as pa
import pyarrow.parquet
import pytest
from PIL import Image

from ovi.config import Architecture
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.manifest import Manifest, build_manifest


@pytest.fixture
def problems_of(tmp_path):
    """What is wrong with a list, given as the bytes or text of a file or as rows to write as JSON Lines."""

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


def test_every_bad_cell_of_every_row_is_told_with_row_line_value_and_what_is_right(problems_of):
    problems = problems_of(
        "text_prompt,seed,sample_steps,solver_name,model_name,video_frame_height_width,shift,image_path\n"
        '"fine,\non two lines",1,2,unipc,720x720_5s,704x1280,1,\n'
        ",1.5,0,unipcc,720x720,0x5,-1,none.png\n"
        "fine,-1,1.5,,,704,nan,\n"
        "fine,x,99999999999,,,7x4000,0,\n"
    )
    found = {(problem.row, problem.field): f"{problem.value} / {problem.expected}" for problem in problems}
    assert {problem.row: problem.line for problem in problems} == {2: 4, 3: 5, 4: 6}
    for place, pieces in {
        (2, "text_prompt"): ("empty / a prompt",),
        (2, "seed"): ("'1.5' / an integer from 0 to 2**63-1",),
        (2, "sample_steps"): ("'0' / an integer of at least 1",),
        (2, "solver_name"): ("'unipcc' / one of unipc, dpm++, euler; did you mean 'unipc'?",),
        (2, "model_name"): ("one of 720x720_5s, 960x960_5s, 960x960_10s; did you mean '720x720_5s'?",),
        (2, "video_frame_height_width"): ("'0x5' / two positive integers",),
        (2, "shift"): ("'-1' / a positive number",),
        (2, "image_path"): ("'none.png', a file that does not exist / an image file, relative to the folder",),
        (3, "seed"): ("'-1' / an integer from 0",),
        (3, "sample_steps"): ("'1.5' / an integer",),
        (3, "video_frame_height_width"): ("'704' / two positive integers",),
        (3, "shift"): ("'nan' / a positive number",),
        (4, "seed"): ("'x' / an integer from 0",),
        (4, "sample_steps"): ("an integer of at most 2147483647",),
        (4, "video_frame_height_width"): ("'7x4000' / a longer side of at most 8 times the shorter one",),
        (4, "shift"): ("'0' / a positive number",),
    }.items():
        assert all(piece in found[place] for piece in pieces), (place, found[place])
    assert len(found) == len(problems) == 16
    assert [problem.row for problem in problems] == sorted(problem.row for problem in problems)


# -- columns -------------------------------------------------------------------------------------------------------


def test_a_list_without_prompts_says_so_and_names_the_column_that_was_meant(problems_of):
    unknown, missing = problems_of("prompt,seed\nA dog,1\n")
    assert (unknown.field, unknown.value) == ("prompt", "an unknown column")
    assert unknown.expected.endswith("did you mean 'text_prompt'?")
    assert missing.value == "no column text_prompt among 'prompt', 'seed'"


def test_an_unknown_column_is_told_with_the_rows_that_are_wrong(problems_of):
    column, cell = problems_of("text_prompt,sample_step,seed\nA dog,5,x\n")
    assert "did you mean 'sample_steps'?" in column.expected
    assert "starts with meta_" in column.expected
    assert (cell.row, cell.field) == (1, "seed")


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("text_prompt,seed,seed", "two columns are named 'seed'"),
        (",text_prompt,seed", "column 1 has no name"),
        ("text_prompt;image_path;seed", "commas between the columns"),
    ],
)
def test_a_header_that_cannot_be_right_says_why(problems_of, header, message):
    (problem,) = problems_of(f"{header}\na,1,2\n")
    assert problem.line == 1
    assert message in str(problem)


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "line", "message"),
    [
        ("", "a.csv", None, "an empty file; expected a header line with a column text_prompt"),
        ("text_prompt\n", "a.csv", None, "no rows; expected at least one prompt"),
        ("\n \n", "a.txt", None, "no rows; expected at least one prompt"),
        ("", "a.jsonl", None, "no rows; expected at least one prompt"),
        ("text_prompt\na\n", "a.xlsx", None, "a file of type '.xlsx'; expected a prompt list that ends in .csv"),
        ("text_prompt\nA dog\x00\n", "a.csv", 2, "a NUL byte"),
        ("text_prompt\nA café\n".encode("cp1252"), "a.csv", 2, "byte 0xe9 at offset 17 is not UTF-8"),
        ("A dog\nA café\n".encode("cp1252"), "a.txt", 2, "iconv -f CP1252 -t UTF-8 a.txt > a-utf8.txt"),
        ("text_prompt\nA dog\n".encode("utf-16"), "a.csv", 1, "iconv -f UTF-16 -t UTF-8 a.csv > a-utf8.csv"),
        ("text_prompt\nA dog\n".encode("utf-16-le"), "a.csv", 1, "a NUL byte, as in UTF-16"),
        ("not parquet", "a.parquet", None, "expected a Parquet file"),
        ("not arrow", "a.arrow", None, "expected an Arrow IPC file"),
    ],
)
def test_a_file_that_is_no_list_says_where_and_why(problems_of, content, name, line, message):
    (problem,) = problems_of(content, name)
    assert problem.line == line
    assert message in str(problem)


@pytest.mark.parametrize("name", ["none.csv", "none.parquet"])
def test_a_list_that_does_not_exist_is_named(problems_of, name):
    (problem,) = problems_of(None, name)
    assert problem.value == "a file that does not exist"


def test_rows_with_too_many_or_too_few_fields_are_told_with_the_other_problems(problems_of):
    many, few, cell = problems_of("text_prompt,seed\nA dog, barking,1\nA cat\nA cow,x\n")
    assert str(many).endswith(
        "row 1 (line 2): 3 fields; expected 2, as in the header; a cell that holds the separator needs quotes"
    )
    assert (few.row, few.value) == (2, "1 field")
    assert (cell.row, cell.line, cell.field) == (3, 4, "seed")


@pytest.mark.parametrize("broken", ['"never closed,1\nb,2\n', '"closed"early,1\n'])
def test_broken_quotes_are_told_with_the_line_where_the_row_starts(problems_of, broken):
    cell, quotes = sorted(problems_of(f"text_prompt,seed\na,x\n{broken}"), key=lambda problem: problem.line)
    assert (cell.field, quotes.line) == ("seed", 3)
    assert 'quotes inside a quoted cell doubled ("")' in quotes.expected


def test_every_bad_line_of_json_lines_is_told(problems_of):
    content = (
        '{"text_prompt": "a"}\n\n{"text_prompt": \n[1]\n{"seed": 1, "seed": 2}\n{"text_prompt": "b", "seed": true}\n'
    )
    problems = problems_of(content, "a.jsonl")
    assert [(problem.row, problem.line) for problem in problems] == [(2, 3), (3, 4), (4, 5), (5, 6)]
    assert "not JSON (column" in problems[0].value
    assert "JSON of another kind (list)" in problems[1].value
    assert "the key 'seed' twice" in problems[2].value
    assert (problems[3].field, problems[3].value) == ("seed", "True")


# -- cells with types ----------------------------------------------------------------------------------------------


def test_cells_of_the_wrong_type_are_told(problems_of):
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


def test_a_seed_that_grows_too_large_is_told(problems_of):
    (problem,) = problems_of("text_prompt,seed\na,9223372036854775807\n", each_example_n_times=2)
    assert "a smaller seed" in problem.expected


# -- images --------------------------------------------------------------------------------------------------------


def test_every_unusable_image_is_told_with_its_row(problems_of, tmp_path):
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
    for problem, piece in zip(
        problems,
        [
            "a file that does not exist",
            "a file that is not an image; expected an image that opens (PNG, JPEG",
            "a damaged or truncated image",
            "40,000 pixels wide and 8 high; expected sides of at most 16,384 pixels",
            "12,000 pixels wide and 12,000 high; expected at most 89,478,485 pixels",
            "an image of more than 178,956,970 pixels; expected at most 89,478,485 pixels",
            "900 pixels wide and 100 high; expected a longer side of at most 8 times",
            "'folder', a folder; expected an image file",
        ],
        strict=True,
    ):
        assert piece in str(problem)


def test_mode_i2v_asks_for_an_image_in_every_row(problems_of):
    one, two = problems_of("text_prompt\na\nb\n", mode="i2v")
    assert (one.row, two.row) == (1, 2)
    assert str(one).endswith("image_path is empty; expected an image in every row, as mode i2v asks")


def test_another_table_is_not_taken_for_a_manifest(tmp_path):
    pa.parquet.write_table(pa.table({"text_prompt": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match="a manifest of this program"):
        Manifest.read(tmp_path / "a.parquet")
