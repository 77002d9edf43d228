"""Settings in YAML that mean nothing, or too much."""

import pytest
import yaml

from ovi_ray.errors import InputError
from ovi_ray.inputs.cluster_profile import read_profile
from ovi_ray.inputs.job_spec import JobSpec
from ovi_ray.inputs.yaml_checks import MAX_DEPTH, MAX_VALUES, check_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))


def problems_of(text):
    with pytest.raises(InputError) as caught:
        check_yaml("job.yaml", text)
    return [(problem.line, problem.field, problem.value) for problem in caught.value.problems]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("ok: 1\na: " + "[" * 5000 + "]" * 5000, 2, f"more than {MAX_DEPTH} levels"),
        ("a: " + "{b: " * 5000, 1, f"more than {MAX_DEPTH} levels"),
        (BOMB, 5, f"more than {MAX_VALUES:,} values"),
        ("a: [" + "x, " * MAX_VALUES + "x]", 1, f"more than {MAX_VALUES:,} values"),
        ("ok: 1\na: &a [1, *a]", 2, "*a inside of what it stands for"),
    ],
)
def test_nesting_and_aliases_without_an_end_are_told_by_line(text, line, words):
    ((found, _, value),) = problems_of(text)
    assert found == line
    assert words in value


def test_keys_given_twice_at_any_depth_and_values_that_do_not_exist_are_told_at_once():
    text = f"a: {{b: 1, b: 2}}\nseed: {'9' * 5000}\nday: 2026-13-01\nbits: 0b_\nc:\n  - x: 1\n    x: 2\na: 3\n"
    assert [(line, field) for line, field, _ in problems_of(text)] == [
        (1, "a.b"),
        (2, "seed"),
        (3, "day"),
        (4, "bits"),
        (7, "c.x"),
        (8, "a"),
    ]


@pytest.mark.parametrize(
    "text",
    ["", "a: 1", "c: &c {x: 1}\n<<: *c\nx: 2", "a: &v 5\nb: [*v, *v]", "? [a, b]\n: c", "- x\n- x", "a: '2026-13-01'"],
)
def test_settings_that_mean_something_pass(text):
    check_yaml("job.yaml", text)


@pytest.mark.parametrize(
    ("text", "value"), [("010", 8), ("0x10", 16), ("0b10", 2), ("1_0", 10), ("1:30", 90), ("-1:30.5", -90.5)]
)
def test_a_number_that_yaml_takes_for_another_is_refused_with_what_it_would_be(text, value):
    with pytest.raises(InputError) as caught:
        check_yaml("job.yaml", f"seed: {text}")
    (problem,) = caught.value.problems
    assert (problem.line, problem.field) == (1, "seed")
    assert f" {value})" in problem.expected


@pytest.mark.parametrize(
    "text", ["0", "-0", "0.5", "10", "1.5", "1e3", ".5", "'010'", "0-19", "704x1280", "2026-01-02", "a:b"]
)
def test_plain_numbers_and_texts_pass(text):
    check_yaml("job.yaml", f"seed: {text}")


def test_text_that_is_not_yaml_is_left_to_the_parser():
    with pytest.raises(yaml.YAMLError):
        check_yaml("job.yaml", "a: *nowhere: {")


@pytest.mark.parametrize("read", [JobSpec.from_yaml, read_profile])
@pytest.mark.parametrize("text", [BOMB, "a: " + "[" * 5000, "seed: 2026-13-01", "a: {b: 1, b: 2}"])
def test_job_files_and_cluster_profiles_are_checked(tmp_path, read, text):
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read(path)
    (problem,) = caught.value.problems
    assert problem.file == str(path)
    assert problem.line is not None


@pytest.mark.parametrize(
    ("character", "escape"), [("\x07", "\\x07"), ("\x1b", "\\x1b"), ("\x85\x9f", "\\x9f"), ("\ufffe", "\\ufffe")]
)
@pytest.mark.parametrize("read", [JobSpec.from_yaml, read_profile])
def test_every_line_with_a_control_character_is_told_with_its_escape(tmp_path, read, character, escape):
    path = tmp_path / "a.yaml"
    path.write_text(f"seed: 1\nprompt: a{character}b\nname: {character}\n", encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read(path)
    assert [problem.line for problem in caught.value.problems] == [2, 3]
    assert escape in caught.value.problems[0].expected
