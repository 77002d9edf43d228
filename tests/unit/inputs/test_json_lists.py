"""JSON Lines, and what is mistaken for them."""

import subprocess

import pytest

from ovi.config import Architecture
from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.manifest import build_manifest
from tests.support.lists import manifest_of, problems_of


@pytest.fixture
def write(tmp_path):
    def write(content, name="p.jsonl"):
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def places(problems):
    return [(problem.row, problem.line, problem.field) for problem in problems]


@pytest.mark.parametrize(
    "content", ["a\nb\n", '{"text_prompt": "a",}\n{"text_prompt": "b"},\n', "{'text_prompt': 'a'}\n[]\n"]
)
def test_rows_that_are_all_bad_are_told_and_nothing_of_missing_columns(write, content):
    assert places(problems_of(write(content))) == [(1, 1, None), (2, 2, None)]


@pytest.mark.parametrize(
    "content",
    [
        '[\n {"text_prompt": "a"},\n {"text_prompt": "b"}\n]\n',
        '[{"text_prompt": "a"}, {"text_prompt": "b"}]',
        '{\n "text_prompt": "a"\n}\n{\n "text_prompt": "b"\n}\n',
    ],
)
def test_json_of_another_form_is_told_once_with_the_command_that_makes_lines_of_it(write, content):
    path = write(content, "my [list].jsonl")
    (problem,) = problems_of(path)
    assert problem.line == 1
    command = problem.expected[problem.expected.index("jq ") :]
    if subprocess.run(["which", "jq"], capture_output=True, check=False).returncode:
        assert command.endswith(f"'{path}' > '{path.with_name('my [list]-lines.jsonl')}'")
        return
    subprocess.run(command, shell=True, check=True)
    assert manifest_of(path.with_name("my [list]-lines.jsonl")).table.column("text_prompt").to_pylist() == ["a", "b"]


def test_every_cell_that_no_column_holds_is_told_with_the_other_problems_of_its_row(write):
    problems = problems_of(
        write(
            '{"text_prompt": "a", "meta_x": {"a": 1}, "seed": [1], "shift": NaN}\n'
            '{"text_prompt": {"en": "x"}, "meta_y": [1], "seed": -Infinity}\n'
            f'{{"text_prompt": "a", "seed": {"9" * 5000}, "shift": 1e999}}\n'
            '{"text_prompt": "a", "meta_x": "\\ud800"}\n{"text_prompt": "a", "meta_x": "b\\u0000"}\n'
        )
    )
    expected = {
        (1, 1, "meta_x"),
        (1, 1, "seed"),
        (1, 1, "shift"),
        (2, 2, "text_prompt"),
        (2, 2, "meta_y"),
        (2, 2, "seed"),
        (3, 3, "seed"),
        (3, 3, "shift"),
        (4, 4, "meta_x"),
        (5, 5, "meta_x"),
    }
    assert set(places(problems)) == expected
    assert len(problems) == len(expected)


def test_a_mark_blank_lines_and_windows_line_ends_are_no_rows(write):
    path = write(
        b'\xef\xbb\xbf{"text_prompt": "a", "seed": 7.0}\r\n\r\n  \r\n{"text_prompt": "b", "meta_\xe2\x80\x8bx": 1.5}\r\n'
    )
    manifest = manifest_of(path)
    assert manifest.table.select(["row", "line", "meta_x"]).to_pylist() == [
        {"row": 1, "line": 1, "meta_x": None},
        {"row": 2, "line": 4, "meta_x": "1.5"},
    ]
    assert "'meta_\\u200bx'" in manifest.notes[0]


def test_a_key_that_is_not_utf8_is_refused(write):
    (problem,) = problems_of(write('{"text_prompt": "a", "meta_\\ud800": 1}'))
    assert "'meta_\\ud800'" in problem.value


@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
@pytest.mark.parametrize("name", ["text_prompt", "video_negative_prompt", "audio_negative_prompt"])
def test_text_that_is_not_utf8_is_refused_in_options_too(write, name, text):
    given = {name: text} if name == "text_prompt" else {name: text, "prompts": write('{"text_prompt": "a"}')}

    def check():
        return build_manifest(BatchSpec.from_options(**given), Architecture(), weights=lambda _: "w", numerics="n")

    with pytest.raises(InputError) as caught:
        check()
    (problem,) = caught.value.problems
    assert name.replace("_", "-") in problem.field.replace("_", "-")


def test_a_line_that_is_nested_without_an_end_is_told(write):
    (problem,) = problems_of(write('{"text_prompt": "a"}\n{"text_prompt": ' + "[" * 100_000 + "\n"))
    assert (problem.row, problem.line, problem.value) == (2, 2, "JSON nested too deeply")
