"""Names of exported files, from the columns of a clip."""

import itertools
import string
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ovi_ray.errors import InputError
from ovi_ray.export.names import MAX_PART_BYTES, NameTemplate, names_of, same_file_key

COLUMNS = ("clip_id", "row", "repeat", "seed", "video_guidance_scale", "audio_guidance_scale", "sample_steps", "shift")
COLUMNS = (*COLUMNS, "slg_layer", "solver_name", "model_name", "text_prompt", "meta_shot")
RESERVED = {"CON", "PRN", "AUX", "NUL", "CLOCK$", "CONIN$", "CONOUT$"}
RESERVED |= {f"{device}{digit}" for device in ("COM", "LPT") for digit in "123456789¹²³"}


def make_row(**changes):
    facts = {
        **{
            "clip_id": "f" * 20,
            "row": 7,
            "repeat": 0,
            "seed": 3,
            "video_guidance_scale": 4.5,
            "model_name": "720x720_5s",
        },
        **{"audio_guidance_scale": 3.0, "sample_steps": 50, "shift": 5.0, "slg_layer": 11, "solver_name": "unipc"},
        **{"text_prompt": "a fox", "meta_shot": "sh010"},
    }
    return facts | changes


def name_of(template, **changes):
    return NameTemplate.parse(template, COLUMNS, suffixes=(".mp4",)).name_of(make_row(**changes))


def refused(template, *rows):
    with pytest.raises(InputError) as raised:
        names_of(NameTemplate.parse(template, COLUMNS), rows or (make_row(),))
    return raised.value.problems


@pytest.mark.parametrize(
    ("template", "changes", "name"),
    [
        ("{meta_shot}_s{seed}_g{video_guidance_scale}", {}, "sh010_s3_g4.5"),
        ("{meta_shot}_g{video_guidance_scale}", {"video_guidance_scale": 3.0}, "sh010_g3"),
        ("{row:04}-{seed:06d}", {}, "0007-000003"),
        ("{video_guidance_scale:.2f}", {}, "4.50"),
        ("{meta_shot:03}", {"meta_shot": "7"}, "007"),
        ("{meta_shot:>7}_", {}, "sh010_"),
        ("a {{b}} {seed}.mp4", {}, "a {b} 3"),
        ("{meta_shot}", {"meta_shot": None}, "none"),
        ("{meta_shot}/{text_prompt}", {"meta_shot": "../../etc", "text_prompt": "a/b\\c"}, "_.._etc/a_b_c"),
        ("{meta_shot}", {"meta_shot": "n\u0303"}, "ñ"),
        (
            "{meta_shot}_{text_prompt}_{seed}",
            {"meta_shot": "日" * 60, "text_prompt": "本" * 60},
            f"{'日' * 29}_{'本' * 30}_3",
        ),
        ("{meta_shot}", {"meta_shot": "..."}, "_"),
        ("{meta_shot}", {"meta_shot": "-rf .hidden"}, "rf .hidden"),
        ("{meta_shot}", {"meta_shot": 'say: "no"?\n<b>|*'}, "say_ _no____b___"),
        ("{meta_shot}", {"meta_shot": "aux.shot"}, "aux_.shot"),
        ("{meta_shot}", {"meta_shot": "con"}, "con_"),
        ("{meta_shot}", {"meta_shot": "a\u202egpj.exe"}, "agpj.exe"),
    ],
)
def test_a_name_is_made_of_columns_and_is_safe_everywhere(template, changes, name):
    assert name_of(template, **changes) == name


@pytest.mark.parametrize("column", ["meta_a/b", "meta_a:b", "meta_{a}", 'meta_"a" (cm)', "meta_a!r", "meta_a.b[0]"])
def test_a_column_of_the_list_may_have_any_name(column):
    template = NameTemplate.parse(f"x/{{{column}:03}}_{{{column}}}_{{seed}}", (*COLUMNS, column))
    assert template.name_of(make_row(**{column: "7"})) == "x/007_7_3"


def test_a_long_value_leaves_room_for_the_rest_of_the_name():
    assert name_of("{text_prompt}_s{seed}", text_prompt="a long prompt " * 100).endswith("_s3")


@settings(max_examples=60)
@given(text=st.text(max_size=300) | st.text(alphabet=string.punctuation + " éß漢CONAUX1.", max_size=300))
def test_a_name_of_any_text_is_one_file_on_every_file_system(text):
    name = name_of("{meta_shot}", meta_shot=text)
    assert 0 < len(name.encode()) <= MAX_PART_BYTES
    assert not set(name) & set('/\\:*?"<>|')
    assert all(unicodedata.category(character) not in ("Cc", "Cf", "Cs") for character in name)
    assert name == name.strip(" .")
    assert name.split(".")[0].rstrip().upper() not in RESERVED


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{meta_shoot}", "did you mean 'meta_shot'?"),
        ("{meta_shot", "braces in pairs"),
        ("meta_shot}", "braces in pairs"),
        ("{}", "a column between them"),
        ("{seed!r}", "did you mean 'seed'?"),
        ("{seed.real}", "columns of this job"),
        ("{meta_shot[0]}", "columns of this job"),
        ("{seed:{row}}", "such as {seed:06}"),
        ("../{seed}", "without empty parts"),
        ("/{seed}", "without empty parts"),
        ("{seed}/", "without empty parts"),
        ("", "without empty parts"),
        ("{seed:q}", "another format than 'q' for seed"),
        ("{meta_shot:03}", "no format for numbers ('03') for meta_shot"),
    ],
)
def test_a_template_that_cannot_be_used_is_told_with_what_would_be_right(template, told):
    (problem,) = refused(template)
    assert problem.field == "--name"
    assert told in problem.expected


@pytest.mark.parametrize(
    ("first", "second"),
    [("a", "a"), ("Sh1", "sH1"), ("é", "e\u0301"), ("STRASSE", "straße"), ("a?", "a*"), ("ﬁ", "fi")],
)
def test_names_that_are_one_file_on_some_file_system_are_told(first, second):
    (problem,) = refused("{meta_shot}", make_row(meta_shot=first), make_row(meta_shot=second, row=9, seed=4))
    assert "(rows 7, 9)" in problem.value
    assert problem.expected == "a name that tells them apart, such as {meta_shot}_{seed}"


def test_every_collision_is_told_at_once_and_what_tells_the_takes_apart_is_suggested():
    choices = itertools.product(range(4), (3.0, 4.0), "ab")
    takes = [make_row(seed=seed, video_guidance_scale=scale, meta_shot=shot) for seed, scale, shot in choices]
    problems = refused("{meta_shot}", *takes)
    assert [problem.value.split("the name ")[1] for problem in problems] == ["a (row 7)", "b (row 7)"]
    assert problems[0].expected.endswith("{meta_shot}_{seed}_{video_guidance_scale}")
    better = NameTemplate.parse(problems[0].expected.rpartition(" ")[2], COLUMNS)
    assert len({same_file_key(name) for name in names_of(better, takes)}) == 16
