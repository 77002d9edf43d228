"""A list that is not there is refused and never rendered as a prompt; a prompt that is meant as one is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovi_ray.errors import InputError
from ovi_ray.inputs.job_spec import BatchSpec
from ovi_ray.inputs.path_checks import prompt_list_file
from ovi_ray.inputs.prompt_lists import READERS
from ovi_ray.inputs.prompt_or_path import Meaning, meaning_of
from ovi_ray.storage.paths import to_location

PATHS = [
    *("prompts.csv", "my prompts.xlsx", "PROMPTS.TSV", "a b c.Numbers", "list.ods", "p.json", "p.yml", "p.csv.gz"),
    *("prompts/", "my prompts/", "lists/a b.csv", "lists/a", "../x", "../my lists/x", "./a b", "/data/my prompts"),
    *("~/prompts", "~me/my prompts", "$HOME/my prompts", "${LISTS}/day one", "*.csv", "lists/*", "cat/dog"),
    *(r"C:\x\y", "c:/my lists/x", r"\\host\share\my list", r"lists\a", r"my lists\day one", "my lists\\"),
    *("s3://bucket/list", "s3://bucket/my list", "gs://b/p.csv", "file:///tmp/my list", "https://host/list of mine"),
    *('"prompts.csv"', " prompts.csv ", "prompts.csv\n", "'my prompts.xlsx',", "list.v2", "some.thing", "提示词.csv"),
    *("prompts.csv\u200b", "\ufeff./lists", "my\nprompts.csv"),
]
PROMPTS = [
    *("a red fox", "A cat / dog runs.", "a cat/dog runs", "He/she walks", "24/7 radio plays", "AC/DC on a poster"),
    *("A fox runs at 5 km/h and 3.5 m/s", "either / or /", "He opens prompts.csv.", "prompts.csv is on his screen"),
    *("A dog.\nAudio: rain", "prompts/\nlists/", r"A dog\nAudio: rain", r"He says \"hi\" and leaves", "// a comment"),
    *(
        "A dog. Audio: barking",
        "See http://host/x for more",
        "Version 2.0 of a robot",
        "~5 dogs run",
        "...and then it rains",
    ),
    *("一只狐狸，在雪地里奔跑", "狐が走る。", "A <S>hi<E> and/or <AUDCAP>rain<ENDAUDCAP>", "x" * 300 + " y"),
]
WORDS = ["fox", "Fox!", "prompts", "提示词", "x" * 300, "3.5", "re-run", "", "  "]


@pytest.mark.parametrize(
    ("text", "meaning"),
    [(text, meaning) for meaning, texts in zip(Meaning, (PATHS, PROMPTS, WORDS), strict=True) for text in texts],
)
def test_a_text_means_what_its_form_says(tmp_path, text, meaning):
    assert meaning_of(text, to_location(tmp_path)) is meaning


@pytest.mark.parametrize("suffix", READERS)
def test_every_kind_of_list_is_known_by_its_suffix(tmp_path, suffix):
    assert meaning_of(f"a list of mine{suffix.upper()}", to_location(tmp_path)) is Meaning.PATH


@pytest.mark.parametrize("text", ["a red fox", "fox", "a fox\nruns"])
def test_a_file_or_folder_that_exists_is_a_path(tmp_path, text):
    (tmp_path / text).write_text("")
    assert meaning_of(text, to_location(tmp_path)) is Meaning.PATH
    (tmp_path / text).unlink()
    (tmp_path / text).mkdir()
    assert meaning_of(text, to_location(tmp_path)) is Meaning.PATH


def test_what_would_lie_in_a_folder_that_exists_is_a_path(tmp_path):
    (tmp_path / "my lists").mkdir()
    assert meaning_of("my lists/day one", to_location(tmp_path)) is Meaning.PATH


def test_a_word_that_is_a_list_without_its_suffix_is_a_path(tmp_path):
    (tmp_path / "fox.csv").write_text("")
    assert meaning_of("fox", to_location(tmp_path)) is Meaning.PATH


@given(st.text(max_size=40))
def test_every_text_means_something(tmp_path_factory, text):
    assert meaning_of(text, to_location(tmp_path_factory.getbasetemp())) in Meaning


# -- in a job file -----------------------------------------------------------------------------------------------------


def job_of(tmp_path, text, **options):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return BatchSpec.from_yaml(path, options)


def problems_of(tmp_path, text, **options):
    with pytest.raises(InputError) as caught:
        job_of(tmp_path, text, **options)
    return caught.value.problems


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("prompts.xlsx", "'prompts.xlsx', a file that does not exist"),
        ("lists/", "'lists/', a folder"),
        ("lists", "'lists', a folder"),
        ("nowhere/", "'nowhere/', a file that does not exist"),
        ("nowhere/day one.csv", "'nowhere/day one.csv', a file that does not exist"),
        ("C:\\lists\\a", "'C:\\\\lists\\\\a', a file that does not exist"),
    ],
)
@pytest.mark.parametrize("key", ["text_prompt", "prompts"])
def test_a_list_that_is_not_there_is_refused(tmp_path, key, value, found):
    (tmp_path / "lists").mkdir()
    (problem,) = problems_of(tmp_path, f"{key}: '{value}'\n")
    assert (problem.field, problem.line, problem.value) == (key, 1, found)
    assert "--prompt" in problem.expected


@pytest.mark.parametrize("value", ["fox", "A cat / dog runs", "A dog. Audio: barking", "一只狐狸，在雪地里奔跑"])
def test_a_literal_prompt_of_a_published_job_file_is_read(tmp_path, value):
    job = job_of(tmp_path, f"text_prompt: '{value}'\n")
    assert (job.text_prompt, job.prompts) == (value, None)


@pytest.mark.parametrize("value", ["prompts.csv", "lists/", "s3://bucket/list", "C:\\x", "fox"])
def test_the_key_prompt_is_never_taken_for_a_path(tmp_path, value):
    (tmp_path / "prompts.csv").write_text("text_prompt\na fox\n")
    job = job_of(tmp_path, f"prompt: '{value}'\n")
    assert (job.text_prompt, job.prompts) == (value, None)


def test_an_option_replaces_the_prompt_of_a_job_file_whatever_its_key(tmp_path):
    (tmp_path / "p.csv").write_text("text_prompt\na fox\n")
    for line in ("prompt: a dog\n", "text_prompt: a dog\n", "text_prompt: p.csv\n", "prompts: p.csv\n"):
        assert job_of(tmp_path, line, prompt="p.csv").text_prompt == "p.csv"
        assert job_of(tmp_path, line, prompts=tmp_path / "p.csv").text_prompt is None


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("prompt: a\ntext_prompt: b\n", ["prompt"]),
        ("prompt: a\nprompts: p.csv\n", ["prompts"]),
        ("prompt: ''\n", ["prompt"]),
        ("prompt: 5\n", ["prompt"]),
    ],
)
def test_a_prompt_given_twice_or_empty_is_refused(tmp_path, text, fields):
    (tmp_path / "p.csv").write_text("text_prompt\na fox\n")
    assert [problem.field for problem in problems_of(tmp_path, text)] == fields


# -- what may have been meant ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "names"),
    [
        ("prompts.xlsx", ["prompts.csv"]),
        ("Promts.csv", ["prompts.csv"]),
        ("lists", ["day one.csv", "two.tsv"]),
        ("elsewhere.txt", []),
        ("nowhere/prompts.csv", ["nowhere"]),
    ],
)
def test_files_that_may_have_been_meant_are_named(tmp_path, asked, names):
    (tmp_path / "prompts.csv").write_text("")
    (tmp_path / ".prompts.csv").write_text("")
    (tmp_path / "lists").mkdir()
    for name in ("two.tsv", "day one.csv", "notes.md"):
        (tmp_path / "lists" / name).write_text("")
    _, expected = prompt_list_file(to_location(tmp_path / asked))
    shown = [
        name for name in ("prompts.csv", "day one.csv", "two.tsv", "notes.md", "nowhere") if f"{name}'" in expected
    ]
    assert shown == names


def test_a_list_that_is_there_and_a_folder_of_parquet_files_pass(tmp_path):
    (tmp_path / "p.csv").write_text("")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "0.parquet").write_bytes(b"")
    assert prompt_list_file(to_location(tmp_path / "p.csv")) is None
    assert prompt_list_file(to_location(tmp_path / "parts")) is None
