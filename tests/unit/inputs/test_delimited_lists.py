"""CSV and TSV as people and spreadsheets write them."""

import subprocess

import pytest

from tests.support.lists import manifest_of, problems_of


@pytest.fixture
def write(tmp_path):
    """A list of this content, in a folder whose name needs quotes in a shell."""
    folder = tmp_path / "my lists [v2]"
    folder.mkdir()

    def write(content, name="my prompts.csv"):
        path = folder / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def columns(manifest, *names):
    return manifest.table.select(names).to_pylist()


# -- separators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "name", "words"),
    [
        ("text_prompt;seed\nA, b;7\n", "a.csv", "semicolon"),
        ("text_prompt\tseed\nA, b\t7\n", "a.csv", "tab"),
        ("text_prompt|seed\nA, b|7\n", "a.csv", "pipe"),
        ('text_prompt,seed\n"A, b",7\n', "a.tsv", "comma"),
        ("sep=;\r\ntext_prompt;seed\r\nA, b;7\r\n", "a.csv", "'sep=;'"),
        ('"sep=,"\ntext_prompt,seed\n"A, b",7\n', "a.csv", "sep=,"),
        ("SEP=\t\ntext_prompt\tseed\nA, b\t7\n", "a.csv", "line 1"),
    ],
)
def test_the_separator_is_found_by_looking_and_told(write, content, name, words):
    manifest = manifest_of(write(content, name))
    assert columns(manifest, "row", "text_prompt", "seed") == [{"row": 1, "text_prompt": "A, b", "seed": 7}]
    assert words in manifest.notes[0]


@pytest.mark.parametrize("content", ["text_prompt,seed\nA; b|c,7\n", "text_prompt\tseed\nA; b|c\t7\n"])
def test_the_separator_that_the_suffix_names_is_not_told(write, content):
    manifest = manifest_of(write(content, "a.tsv" if "\t" in content else "a.csv"))
    assert columns(manifest, "text_prompt", "seed") == [{"text_prompt": "A; b|c", "seed": 7}]
    assert manifest.notes == ()


@pytest.mark.parametrize(
    ("delimiter", "content"),
    [(":", "text_prompt:seed\nA;b:7\n"), ("PIPE", "text_prompt|seed\nA;b|7\n"), ("\\t", "text_prompt\tseed\nA;b\t7\n")],
)
def test_the_delimiter_that_is_given_is_used_without_looking(write, delimiter, content):
    manifest = manifest_of(write(content), delimiter=delimiter)
    assert columns(manifest, "text_prompt", "seed") == [{"text_prompt": "A;b", "seed": 7}]
    assert manifest.notes == ()


@pytest.mark.parametrize("delimiter", ["", "ab", '"', "\n", 3])
def test_a_delimiter_that_is_none_is_refused(write, delimiter):
    (problem,) = problems_of(write("text_prompt\nA\n"), delimiter=delimiter)
    assert problem.field == "--delimiter"
    assert "semicolon" in problem.expected


def test_where_semicolons_separate_columns_a_comma_is_a_decimal_point_and_that_is_told(write):
    path = write("text_prompt;shift;sample_steps;video_frame_height_width\nA, b;4,5;30,0;704,1280\n")
    manifest = manifest_of(path)
    numbers = {"shift": 4.5, "sample_steps": 30, "video_frame_height": 704}
    assert columns(manifest, *numbers) == [numbers]
    assert "sample_steps 30,0 in row 1" in manifest.notes[1]


# -- headers, blank cells and rows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["\u200bseed", "\ufeffseed", "se\u00aded", "\u00a0seed\u2009", "seed\u200f", '"\ufeffseed"']
)
def test_invisible_characters_of_a_column_name_are_ignored_and_told_as_escapes(write, name):
    manifest = manifest_of(write(f"\ufefftext_prompt,{name}\nA,7\n"))
    assert columns(manifest, "seed") == [{"seed": 7}]
    assert ascii(name.strip('"')) in manifest.notes[0]
    assert manifest.notes[0].isascii()


def test_a_letter_that_only_looks_like_another_is_told_as_an_escape(write):
    (problem,) = problems_of(write("text_prompt,s\u0435ed\nA,7\n"))
    assert "'s\\u0435ed'" in problem.value
    assert "'seed'" in problem.expected


def test_two_names_that_differ_in_invisible_characters_are_one_name(write):
    (problem,) = problems_of(write("text_prompt,seed,seed\u200b\nA,1,2\n"))
    assert (problem.line, problem.value) == (1, "two columns are named 'seed'")


def test_blank_columns_and_blank_rows_at_the_end_are_ignored_and_told(write):
    manifest = manifest_of(write("text_prompt,,seed,,\nA,,7,,\nB,,8,,,,\n,,,,\n , ,,,\n\n"))
    assert columns(manifest, "row", "line", "seed") == [
        {"row": 1, "line": 2, "seed": 7},
        {"row": 2, "line": 3, "seed": 8},
    ]
    assert [note for note in manifest.notes if "ignored" in note] == list(manifest.notes)
    assert "2 blank rows" in manifest.notes[0]
    assert "columns 2, 4 and 5" in manifest.notes[2]


def test_a_column_without_a_name_that_has_a_value_is_refused_at_its_place(write):
    (problem,) = problems_of(write("text_prompt,,seed,\nA,,7,x\n"))
    assert (problem.line, problem.value) == (1, "column 4 has no name")


def test_a_blank_row_between_others_is_told(write):
    (problem,) = problems_of(write("text_prompt,seed\nA,7\n,\nB,8\n"))
    assert (problem.row, problem.line, problem.field, problem.value) == (2, 3, "text_prompt", "empty")


def test_a_line_is_told_beside_the_row_where_cells_hold_line_breaks(write):
    broken, unread = problems_of(write('text_prompt,seed\n"A\n\nB",7\nC,x\n"D,9\n'))
    assert (broken.row, broken.line, broken.field) == (2, 5, "seed")
    assert (unread.row, unread.line) == (3, 6)


# -- numbers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["1_0", "１０", "٥", "0x10", "1 0", "1,0", "5%", "$5", "∞", "1e", "--5", "+", ".", "1.2.3"]
)
@pytest.mark.parametrize("field", ["seed", "sample_steps", "shift"])
def test_what_is_no_plain_number_is_refused_in_every_field_of_numbers(write, field, text):
    (problem,) = problems_of(write(f'text_prompt,{field}\nA,"{text}"\n'))
    assert (problem.row, problem.field, problem.value) == (1, field, repr(text))


@pytest.mark.parametrize("text", ["5", " 5 ", "+5", "5.0", "5.", "05"])
@pytest.mark.parametrize("field", ["seed", "sample_steps", "shift"])
def test_plain_numbers_are_read_alike_in_every_field_of_numbers(write, field, text):
    assert columns(manifest_of(write(f"text_prompt,{field}\nA,{text}\n")), field) == [{field: 5}]


# -- encodings ---------------------------------------------------------------------------------------------------------

RUSSIAN, CHINESE, JAPANESE = "Лиса бежит по снегу", "狐狸在雪地里小跑，风声呼啸", "狐が雪の中を走る。音声：風の音"


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("A fox ’s café", "cp1252"),
        (CHINESE, "gbk"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        ("一隻狐狸在雪地裡奔跑", "big5"),
        ("여우가 눈 속을 달린다", "cp949"),
        (RUSSIAN, "cp1251"),
        ("Žluťoučký kůň běží sněhem", "cp1250"),
        ("Un café à la crème, déjà vu", "mac_roman"),
        ("A dog", "utf-16"),
        ("A dog", "utf-16-le"),
        ("A dog", "utf-16-be"),
        ("A dog", "utf-32"),
    ],
)
def test_one_of_the_commands_told_converts_a_list_to_its_right_text(write, text, encoding):
    path = write(f'text_prompt,seed\n"{text}",7\n'.encode(encoding))
    (problem,) = problems_of(path)
    assert problem.line in (1, 2)
    commands = [f"iconv{part.partition('; as ')[0]}" for part in problem.expected.split("iconv")[1:]]
    copy = path.with_name("my prompts-utf8.csv")
    found = set()
    for command in commands:
        subprocess.run(command, shell=True, check=True, cwd="/")
        found.add(manifest_of(copy).table.column("text_prompt")[0].as_py())
    assert text in found


@pytest.mark.parametrize(("text", "encoding"), [(CHINESE, "gbk"), (JAPANESE, "shift_jis"), (RUSSIAN, "koi8_r")])
def test_an_encoding_is_never_told_that_would_make_nonsense_of_the_text(write, text, encoding):
    (problem,) = problems_of(write(f"text_prompt\n{text}\n".encode(encoding)))
    assert "1252" not in problem.expected
    assert "1250" not in problem.expected


def test_bytes_that_are_text_in_no_encoding_have_no_command(write):
    (problem,) = problems_of(write(b"text_prompt\nA\x81\x98\x8d\x83\x90\x88\xff\n"))
    assert problem.value.startswith("byte 0x81 at offset 13")
    assert "iconv" not in problem.expected


def test_a_binary_file_is_not_told_to_be_utf16(write):
    (problem,) = problems_of(write(b"text_prompt\nA dog with \x00 in it\n"))
    assert problem.line == 2
    assert "iconv" not in problem.expected


# -- plain text --------------------------------------------------------------------------------------------------------


def test_lines_of_a_text_that_look_like_comments_or_headers_are_prompts_and_told(write):
    manifest = manifest_of(write("# my prompts\ntext_prompt\nA # b\n", "a.txt"))
    assert len(manifest) == 3
    comment, header = manifest.notes
    assert "row 1 " in comment
    assert "row 2 " in header
