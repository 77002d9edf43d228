"""Arrow and Parquet lists: every type of column is read, or refused by name."""

import re
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from tests.support.lists import LFS_POINTER, manifest_of, not_utf8, problems_of, write_table


@pytest.fixture(params=["p.parquet", "p.arrow", "stream.ipc"])
def write(request, tmp_path):
    return lambda **columns: write_table(tmp_path / request.param, pa.table(columns))


def column(manifest, name):
    return manifest.table.column(name).to_pylist()


PROMPTS = pa.array(["A", "B"])


# -- text --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        PROMPTS.cast(pa.large_string()),
        PROMPTS.cast(pa.string_view()),
        PROMPTS.dictionary_encode(),
        PROMPTS.cast(pa.large_string()).dictionary_encode(),
        PROMPTS.cast(pa.binary()),
        PROMPTS.cast(pa.large_binary()),
        PROMPTS.cast(pa.binary(1)),
    ],
    ids=lambda text: str(text.type),
)
def test_text_of_every_type_is_text(write, text):
    assert column(manifest_of(write(text_prompt=text, meta_x=text)), "text_prompt") == ["A", "B"]


@pytest.mark.parametrize(
    "text", [pa.array([b"ok", b"A\xff"]), not_utf8(b"ok", b"A\xff")], ids=lambda text: str(text.type)
)
@pytest.mark.parametrize("name", ["text_prompt", "meta_x", "video_negative_prompt", "image_path", "solver_name"])
def test_bytes_that_are_not_utf8_are_refused_with_row_and_column_and_once(write, text, name):
    columns = {"text_prompt": PROMPTS, name: text}
    problems = [problem for problem in problems_of(write(**columns)) if problem.row == 2]
    assert [(problem.field, problem.line) for problem in problems] == [(name, None)]
    assert r"b'A\xff'" in problems[0].value


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seed", "shift"),
    [
        (pa.array([Decimal("7"), Decimal("8.00")]), pa.array([Decimal("4.0"), Decimal("4.5")])),
        (pa.array([7, 8], pa.uint8()), pa.array([4, 4.5], pa.float16())),
        (pa.array([7.0, 8.0], pa.float32()), pa.array([4, 4.5], pa.float32())),
        (pa.array([7, 8]).dictionary_encode(), pa.array([4.0, 4.5]).dictionary_encode()),
        (pa.array(["7", " 8.0 "]), pa.array(["4", "4.5"])),
    ],
    ids=lambda numbers: str(numbers.type),
)
def test_numbers_of_every_type_are_numbers(write, seed, shift):
    manifest = manifest_of(write(text_prompt=PROMPTS, seed=seed, shift=shift))
    assert (column(manifest, "seed"), column(manifest, "shift")) == ([7, 8], [4.0, 4.5])


def test_what_is_no_number_of_its_field_is_refused(write):
    problems = problems_of(
        write(
            text_prompt=PROMPTS,
            seed=pa.array([2**64 - 1, 1], pa.uint64()),
            sample_steps=pa.array([Decimal("5.5"), Decimal("6.0")]),
            shift=[True, False],
            slg_layer=pa.array([1704164645, None], pa.timestamp("s")),
        )
    )
    places = [(problem.row, problem.field) for problem in problems]
    assert sorted(places) == [(1, "sample_steps"), (1, "seed"), (1, "shift"), (1, "slg_layer"), (2, "shift")]


def test_nan_is_an_empty_cell_and_told_as_are_columns_of_nulls(write):
    manifest = manifest_of(
        write(text_prompt=PROMPTS, seed=[7.0, float("nan")], meta_f=[float("nan")] * 2, image_path=pa.nulls(2))
    )
    assert (column(manifest, "seed")[0], column(manifest, "meta_f")) == (7, [None, None])
    assert [note.split(" is NaN in ")[:1] for note in manifest.notes] == [["seed"], ["meta_f"]]


# -- the user's own columns --------------------------------------------------------------------------------------------

NOON = 1704164645  # 2024-01-02 03:04:05 UTC


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (pa.array([NOON * 10**9 + 6, None], pa.timestamp("ns")), "2024-01-02T03:04:05.000000006"),
        (pa.array([NOON, None], pa.timestamp("s")), "2024-01-02T03:04:05"),
        (pa.array([NOON * 1000 + 500, None], pa.timestamp("ms", "UTC")), "2024-01-02T03:04:05.5Z"),
        (pa.array([NOON * 10**6, None], pa.timestamp("us", "Europe/Berlin")), "2024-01-02T04:04:05+01:00"),
        (pa.array([19000, None], pa.date32()), "2022-01-08"),
        (pa.array([3600 * 10**9 + 1, None], pa.time64("ns")), "01:00:00.000000001"),
        (pa.array([90_500_000_000, None], pa.duration("ns")), "PT90.5S"),
        (pa.array([Decimal("4.50"), None]), "4.50"),
        (pa.array([12, None], pa.int16()), "12"),
        (pa.array([True, None]), "True"),
        (pa.array(["a", None]).dictionary_encode(), "a"),
    ],
    ids=lambda value: str(value.type) if isinstance(value, pa.Array) else value,
)
def test_own_columns_of_every_type_are_carried_as_text(write, cells, text):
    assert column(manifest_of(write(text_prompt=PROMPTS, meta_x=cells)), "meta_x") == [text, None]


@pytest.mark.parametrize(
    "cells",
    [
        pa.array([[1], [2]]),
        pa.array([{"a": 1}, None]),
        pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int8())),
        pa.array([NOON, None], pa.timestamp("s", "Mars/Base")),
    ],
    ids=lambda cells: str(cells.type),
)
@pytest.mark.parametrize("name", ["text_prompt", "meta_x", "seed"])
def test_a_column_that_holds_no_cells_is_refused_by_name_and_type(write, cells, name):
    (problem,) = problems_of(write(**{"text_prompt": PROMPTS, name: cells}))
    assert (problem.row, problem.field) == (None, name)
    assert re.match(r"[a-z_]+", str(cells.type))[0] in problem.value


def test_a_date_that_does_not_exist_is_refused_by_row(write):
    (problem,) = problems_of(write(text_prompt=PROMPTS, meta_x=pa.array([2**31 - 1, 1], pa.date32())))
    assert (problem.row, problem.field) == (1, "meta_x")


@pytest.mark.parametrize("name", ["text_prompt", "image_path", "video_negative_prompt"])
def test_dates_are_no_text(write, name):
    (problem,) = problems_of(write(**{"text_prompt": PROMPTS, name: pa.array([NOON, NOON], pa.timestamp("s"))}))
    assert (problem.row, problem.field) == (None, name)


def test_runs_that_arrow_cannot_decode_are_refused_by_name_and_type(tmp_path):
    runs = pa.RunEndEncodedArray.from_arrays([2], pa.array(["a"]).dictionary_encode())
    table = pa.table({"text_prompt": PROMPTS, "meta_x": runs})
    with pa.OSFile(str(tmp_path / "p.arrow"), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)
    (problem,) = problems_of(tmp_path / "p.arrow")
    assert (problem.row, problem.field) == (None, "meta_x")


def test_the_size_of_the_frames_may_be_a_list_of_two(write):
    sizes = pa.array([[704, 1280], None], pa.list_(pa.int32(), 2))
    manifest = manifest_of(write(text_prompt=PROMPTS, video_frame_height_width=sizes))
    assert column(manifest, "video_frame_width") == [1280, 1280]


# -- tables and folders ------------------------------------------------------------------------------------------------


def test_the_index_that_pandas_writes_is_no_column(write):
    manifest = manifest_of(write(text_prompt=PROMPTS, __index_level_0__=[5, 6]))
    assert "__index_level_0__" in manifest.notes[0]


def test_a_table_without_rows_has_no_rows(write):
    (problem,) = problems_of(write(text_prompt=pa.array([], pa.string())))
    assert problem.value == "no rows"


def test_offsets_that_lead_out_of_a_file_are_a_broken_file(tmp_path):
    content = bytearray(write_table(tmp_path / "p.arrow", pa.table({"text_prompt": ["AAAA", "BBBB"]})).read_bytes())
    offsets = np.array([0, 4, 8], np.int32).tobytes()
    place = content.index(offsets)
    content[place : place + 12] = np.array([0, 4, 2**30], np.int32).tobytes()
    (tmp_path / "p.arrow").write_bytes(content)
    (problem,) = problems_of(tmp_path / "p.arrow")
    assert problem.value.startswith("unreadable (")


@pytest.mark.parametrize("name", ["p.parquet", "p.csv", "p.jsonl", "p.xlsx", "p.txt"])
def test_a_pointer_of_git_lfs_is_named_as_such(tmp_path, name):
    (tmp_path / name).write_bytes(LFS_POINTER)
    (problem,) = problems_of(tmp_path / name)
    assert "Git LFS pointer" in problem.value


@pytest.mark.parametrize("name", ["p.parquet", "p.csv"])
def test_a_link_that_leads_nowhere_is_named_as_such(tmp_path, name):
    (tmp_path / name).symlink_to("gone/data")
    (problem,) = problems_of(tmp_path / name)
    assert "a link to gone/data, which does not exist" in problem.value


@pytest.fixture
def folder(tmp_path):
    """A folder of Parquet files, as Spark and Dask write them."""
    folder = tmp_path / "date=2026-01-02" / "prompts"
    folder.mkdir(parents=True)
    write_table(folder / "part-1.parquet", pa.table({"text_prompt": ["C"], "meta_x": ["c"]}))
    write_table(folder / "part-0.parquet", pa.table({"text_prompt": ["A", "B"], "seed": [7, 8]}))
    (folder / "_SUCCESS").touch()
    (folder / ".part-0.parquet.crc").write_bytes(b"crc")
    (folder / "_metadata.parquet").write_bytes(b"not a table")
    return folder


def test_a_folder_of_parquet_files_is_one_list_in_the_order_of_their_names_and_told(folder):
    manifest = manifest_of(folder)
    assert manifest.table.select(["row", "text_prompt", "meta_x"]).to_pylist() == [
        {"row": 1, "text_prompt": "A", "meta_x": None},
        {"row": 2, "text_prompt": "B", "meta_x": None},
        {"row": 3, "text_prompt": "C", "meta_x": "c"},
    ]
    assert column(manifest, "seed")[:2] == [7, 8]
    assert "part-0.parquet from row 1, part-1.parquet from row 3" in manifest.notes[0]


def test_problems_in_a_folder_name_the_file_and_the_row_of_the_list(folder):
    write_table(folder / "part-2.parquet", pa.table({"text_prompt": ["D", None], "seed": [-1, 1]}))
    write_table(folder / "part-3.parquet", pa.table({"text_prompt": pa.array([], pa.string())}))
    write_table(folder / "part-4.parquet", pa.table({"text_prompt": not_utf8(b"\xff")}))
    assert [(problem.file, problem.row, problem.field) for problem in problems_of(folder)] == [
        (str(folder / "part-2.parquet"), 4, "seed"),
        (str(folder / "part-2.parquet"), 5, "text_prompt"),
        (str(folder / "part-4.parquet"), 6, "text_prompt"),
    ]


def test_every_file_of_a_folder_that_cannot_be_read_is_named(folder):
    for name in ("part-0.parquet", "part-1.parquet"):
        (folder / name).write_bytes(b"PAR1")
    assert [problem.file for problem in problems_of(folder)] == [
        str(folder / name) for name in ("part-0.parquet", "part-1.parquet")
    ]


def test_a_part_of_a_folder_that_is_a_link_that_leads_nowhere_is_named(folder):
    (folder / "part-7.parquet").symlink_to("gone")
    (problem,) = problems_of(folder)
    assert (problem.file, problem.value) == (str(folder / "part-7.parquet"), "a link to gone, which does not exist")


def test_lists_that_a_folder_has_besides_are_told(folder):
    (folder / "day=2").mkdir()
    (folder / "day=2" / "part-0.parquet").touch()
    (folder / "more.csv").touch()
    notes = manifest_of(folder).notes
    assert [note for note in notes if "'day=2'" in note]
    assert [note for note in notes if "'more.csv'" in note]


def test_a_folder_without_a_parquet_file_is_refused(tmp_path):
    (tmp_path / "list").mkdir()
    (tmp_path / "list" / "p.csv").write_text("text_prompt\nA\n")
    (problem,) = problems_of(tmp_path / "list")
    assert problem.value == f"'{tmp_path / 'list'}', a folder"
