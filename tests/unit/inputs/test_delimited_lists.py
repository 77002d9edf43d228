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


# -- quotes ------------------------------------------------------------------------------------------------------------


def test_a_cell_in_quotes_after_spaces_is_read_without_them_and_told(write):
    manifest = manifest_of(write('seed, "text_prompt"\n7, "b, c"\n8,d\n9,  "e\nf"\n'))
    assert columns(manifest, "seed", "text_prompt", "line") == [
        {"seed": 7, "text_prompt": "b, c", "line": 2},
        {"seed": 8, "text_prompt": "d", "line": 3},
        {"seed": 9, "text_prompt": "e\nf", "line": 4},
    ]
    assert "rows 1 and 3 have spaces before a cell in quotes" in manifest.notes[0]


def test_quotes_after_spaces_that_do_not_enclose_the_cell_are_text_and_told(write):
    manifest = manifest_of(write('seed,text_prompt\n7, "Hello" she says\n8, "open\n9,e\n'))
    assert columns(manifest, "text_prompt") == [
        {"text_prompt": ' "Hello" she says'},
        {"text_prompt": ' "open'},
        {"text_prompt": "e"},
    ]
    assert "rows 1 and 2 have spaces before a quote" in manifest.notes[0]


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
        (
            "Un zorro camina — mañana, café “así”",
            "mac_roman",
        ),  # of five Latin encodings its letters are in order in one
        ("Un café à la crème, déjà vu", "mac_roman"),
        ("A dog", "utf-16"),
        ("A dog", "utf-16-le"),
        ("A dog", "utf-16-be"),
        ("A dog", "utf-32"),
        (CHINESE, "utf-16-le"),
        (CHINESE, "utf-16-be"),
        (CHINESE, "utf-32-le"),
        (JAPANESE, "utf-32-be"),
        (JAPANESE, "iso2022_jp"),
        ("여우가 눈 속을 달린다", "iso2022_kr"),
        (f"Café, {CHINESE}", "utf-7"),
        ("Μια αλεπού τρέχει στο χιόνι, Άλφα", "cp1253"),
        ("Μια αλεπού τρέχει στο χιόνι", "iso8859_7"),
        ("שועל רץ בשלג והרוח נושבת", "cp1255"),
        ("ثعلب يركض في الثلج", "cp1256"),
        ("Bir tilki karda koşuyor, ağaç, İçinde", "cp1254"),
        ("สุนัขจิ้งจอกวิ่งในหิมะ", "cp874"),
        ("Lapė bėga per sniegą", "cp1257"),
        ("Zażółć gęślą jaźń", "iso8859_2"),
        ("Zażółć gęślą jaźń", "cp852"),
        ("Un café à 5 €", "iso8859_15"),
        ("Un café à la crème, Größe", "cp850"),
        ("Un café à la crème, Größe", "cp437"),
        (RUSSIAN, "cp866"),
        (RUSSIAN, "iso8859_5"),
        (RUSSIAN, "koi8_r"),
        (RUSSIAN, "mac_cyrillic"),
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


def test_where_more_than_one_alphabet_fits_there_is_a_reading_in_each(write):
    (problem,) = problems_of(write("text_prompt\nשועל רץ בשלג\n".encode("cp1255")))
    for reading in ("шх", "ψυ", "רץ"):
        assert reading in problem.expected


def test_a_conversion_is_not_told_that_would_spoil_the_lines_that_are_utf8(write):
    lines = ("Café".encode(), "Café".encode("cp1252"), b"A dog", "Größe".encode("cp1252"))
    (problem,) = problems_of(write(b"\n".join((b"text_prompt", *lines))))
    assert problem.line == 3
    assert "lines 3 and 5" in problem.expected
    assert "'Café'" in problem.expected
    assert "iconv" not in problem.expected


def test_hz_is_refused_with_the_text_that_it_reads(write):
    (problem,) = problems_of(write(f"text_prompt\nA dog\n{CHINESE}\n".encode("hz")))
    assert problem.line == 3
    assert CHINESE in problem.value


@pytest.mark.parametrize(
    "text",
    [
        *(
            "A + B - C",
            "1+1-2, 1+100 m",
            "vocals+keyboard",
            "AVI+MP4 in HDR10+",
            "Nike+Run-",
            "C+-B",
            "+1 (555) 010-9999",
        ),
        *("code ~{ and ~} here", "~{~}", "~~~", "+AOk- café", "x+AOk- y, a+b"),
    ],
)
def test_plus_signs_and_braces_of_prompts_are_text(write, text):
    assert columns(manifest_of(write(f'text_prompt\n"{text}"\n')), "text_prompt") == [{"text_prompt": text}]


@pytest.mark.parametrize("text", ["A caf\ufffd", "A caf&#0;", "A caf\u00ef\u00bf\u00bd"])
@pytest.mark.parametrize("name", ["text_prompt", "audio_negative_prompt"])
def test_characters_that_an_earlier_conversion_lost_are_told_with_their_rows(write, text, name):
    other = "audio_negative_prompt" if name == "text_prompt" else "text_prompt"
    notes = [note for note in manifest_of(write(f"{name},{other}\nA,a\n{text},b\n")).notes if "U+FFFD" in note]
    assert [note.startswith("row 2 ") and name in note and "caf\ufffd" in note for note in notes] == [True]


@pytest.mark.parametrize(("text", "encoding"), [(CHINESE, "gbk"), (JAPANESE, "shift_jis"), (RUSSIAN, "koi8_r")])
def test_an_encoding_is_never_told_that_would_make_nonsense_of_the_text(write, text, encoding):
    (problem,) = problems_of(write(f"text_prompt\n{text}\n".encode(encoding)))
    assert "1252" not in problem.expected
    assert "1250" not in problem.expected


def test_bytes_that_are_text_in_no_encoding_have_no_command(write):
    (problem,) = problems_of(write(b"text_prompt\nA\x81\x98\x01\x8d\x83\x90\x88\xff\n"))
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
